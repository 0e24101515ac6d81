"""Attention. Query and key features meet in a sum of products, value features pass to the output."""

from __future__ import annotations

import functools

import torch

from ..op import Masks, Op, Result
from ..value import Value, Zeros
from .meeting import meet
from .registry import WHOLE_MODULES, named, register_rule
from .zeros import changed

aten = torch.ops.aten


@register_rule(*named("scaled_dot_product_attention"))
def attention(op: Op) -> Value:
    query, key, value, mask = op["query"], op["key"], op["value"], op["attn_mask"]
    if op["scale"] is None:
        for x in (query, key):
            op.pin(op.axis(x, -1), f"sets the scale of {op.label} by its width (no explicit scale)")
        op.unify(op.axis(query, -1), op.axis(key, -1))
    else:
        op.reads_product((query, query.ndim - 1), (key, key.ndim - 1))
        op.doubt(op.axis(query, -1))
    for x in (key, value):
        op.pin(op.axis(x, -2), f"is mixed with others by {op.label}")
    ndim = query.ndim
    axes = []
    for d in range(ndim - 2):
        places = [(op.axis(query, d), query.shape[d])]
        for x in (key, value):  # under enable_gqa each head of these serves several of the query's, side by side
            times = query.shape[d] // x.shape[d] if op["enable_gqa"] and d == ndim - 3 else 1
            places.append((op.interleaved(op.axis(x, d), times), x.shape[d] * times))
        own = d - ndim if mask is None else mask.ndim + d - ndim
        if own >= 0:
            places.append((op.axis(mask, own), mask.shape[own]))
        axes.append(meet(op, places))
    for axis in op.axes(mask)[-2:] if mask is not None else ():
        op.pin(axis, f"is the mask of {op.label}")
    axes += [op.axis(query, -2), op.axis(value, -1)]

    def zero(zeros: Zeros) -> Masks:
        """What weighs nothing but zeros is zero."""
        known: list[torch.Tensor | None] = [*[None] * (ndim - 1), zeros(value, value.ndim - 1)]
        for d in range(ndim - 2):
            times = query.shape[d] // max(value.shape[d], 1)
            if axes[d] is not None and times * value.shape[d] == query.shape[d]:
                known[d] = changed(zeros(value, d), functools.partial(torch.repeat_interleave, repeats=times))
        return known

    return op.output(axes, zero)


@register_rule(*named("_native_multi_head_attention", "_transformer_encoder_layer_fwd"))
def whole_module(op: Op) -> Result:
    """nn.MultiheadAttention checks its widths against the ones it was made with: nothing that it touches can leave."""
    op.pin_all(f"is read by {op.module or 'the model'}: nn.MultiheadAttention mixes its features")
    return op.fixed()


WHOLE_MODULES["MultiheadAttention"] = whole_module
