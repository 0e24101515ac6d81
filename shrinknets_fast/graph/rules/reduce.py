"""Reductions over dimensions: a sum loses nothing with a zero, a mean counts its features."""

import torch

from .registry import register_rule
from .zeros import carried

aten = torch.ops.aten


def reduced(op, dims, keepdim, reads):
    x = op.inputs[0]
    dims = {d % x.ndim for d in dims} if dims else set(range(x.ndim))
    axes = []
    for d in range(x.ndim):
        axis = op.axis(x, d)
        if d not in dims:
            axes.append(axis)
            continue
        if reads:
            op.reads(x, d)
        else:
            op.pin(axis, f"is averaged by {op.label}, which counts its features")
        if keepdim:
            axes.append(None)
    return op.output(axes, carried([x], axes))


@register_rule(aten.sum.dim_IntList, aten.sum.default)
def sum(op):
    dims = op["dim"] if "dim" in op._args else None
    return reduced(op, dims, "keepdim" in op._args and op["keepdim"], reads=True)


@register_rule(aten.mean.dim, aten.mean.default)
def mean(op):
    dims = op["dim"] if "dim" in op._args else None
    return reduced(op, dims, "keepdim" in op._args and op["keepdim"], reads=False)
