"""Reductions over dimensions: a sum loses nothing with a zero, a mean counts its features."""

from __future__ import annotations

import math

import torch

from ..op import Op, Result
from .pointwise import pointwise
from .registry import named, register_rule
from .zeros import carried

aten = torch.ops.aten


def reduced(op: Op, why: str | None, keeps_zero: bool = True) -> Result:
    """why: None if a zero adds nothing, else what pins the features of a reduced axis. Every other axis passes."""
    x = op.inputs[0]
    dims, keepdim = (op.arguments.get(name) for name in ("dim", "keepdim"))
    dims = [dims] if isinstance(dims, int) else dims
    dims = {d % x.ndim for d in dims} if dims and x.ndim else set(range(x.ndim))
    axes = []
    for d in range(x.ndim):
        axis = op.axis(x, d)
        if d not in dims:
            axes.append(axis)
            continue
        if why is None:
            op.reads(x, d)
            op.doubt(axis)  # by hand, a sum is divided by the width: does the code follow it?
        else:
            op.pin(axis, f"is {why}")
        if keepdim:
            axes.append(None)
    zero = carried([x], axes) if keeps_zero else None
    if not op.several:
        return op.output(axes, zero)
    metas = op.metas()
    same = [m.dtype == metas[0].dtype for m in metas]  # an index is not zero where what it points to is
    return op.outputs(
        [axes] * len(metas), zero and (lambda zeros: [zero(zeros) if s else [None] * len(axes) for s in same])
    )


@register_rule(*named("sum", "nansum", "any", "count_nonzero"))
def sum(op: Op) -> Result:
    return reduced(op, None)


@register_rule(*named("mean", "nanmean"))
def mean(op: Op) -> Result:
    return reduced(op, f"averaged by {op.label}, which counts its features")


@register_rule(*named("std", "var", "std_mean", "var_mean"))
def spread(op: Op) -> Result:
    return reduced(op, f"averaged by {op.label}, which counts its features")


@register_rule(*named("amax", "amin", "max", "min", "aminmax", "prod", "all"))
def extreme(op: Op) -> Result | None:
    if len(op.inputs) > 1:  # max(a, b) is maximum(a, b)
        return pointwise(op)
    return reduced(op, f"compared with others by {op.label}")


@register_rule(*named("argmax", "argmin", "logsumexp", "special_logsumexp"))
def position(op: Op) -> Result:
    return reduced(op, f"compared with others by {op.label}", keeps_zero=False)


@register_rule(*named("linalg_vector_norm", "norm", "frobenius_norm"))
def norm(op: Op) -> Result:
    """Sums of powers of absolute values: a zero adds nothing where the power is positive."""
    order = op.arguments.get("ord", op.arguments.get("p"))
    order = 2 if order is None or isinstance(order, str) else order
    if isinstance(order, (int, float)) and (order > 0 or math.isinf(order) and order > 0):
        return reduced(op, None)
    return reduced(op, f"compared with others by {op.label}", keeps_zero=False)
