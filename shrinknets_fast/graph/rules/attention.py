"""Attention. Query and key features meet in a sum of products, value features pass to the output."""

from __future__ import annotations

import torch

from ..op import Op, Result
from ..value import Value
from .meeting import meet
from .registry import WHOLE_MODULES, named, register_rule

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
    ndim, masked = query.ndim, mask is not None
    for axis in op.axes(mask) if masked else ():
        op.pin(axis, f"is the mask of {op.label}")
    axes = []
    for d in range(ndim - 2):
        axis = meet(op, [(op.axis(x, d), x.shape[d]) for x in (query, key, value)])
        if op["enable_gqa"] or masked:
            op.pin(axis, f"is split among the heads of {op.label}")
        axes.append(axis)
    axes += [op.axis(query, -2), op.axis(value, -1)]
    return op.output(axes, lambda zeros: [None] * (ndim - 1) + [zeros(value, value.ndim - 1)])


@register_rule(*named("_native_multi_head_attention", "_transformer_encoder_layer_fwd"))
def whole_module(op: Op) -> Result:
    """nn.MultiheadAttention checks its widths against the ones it was made with: nothing that it touches can leave."""
    op.pin_all(f"is read by {op.module or 'the model'}: nn.MultiheadAttention mixes its features")
    return op.fixed()


WHOLE_MODULES["MultiheadAttention"] = whole_module
