"""One tensor many times, or many as one: stack, repeat, expand."""

from __future__ import annotations

import torch

from ..op import Axes, Op, Result
from ..value import Value
from .registry import register_rule
from .zeros import carried

aten = torch.ops.aten


@register_rule(aten.stack.default)
def stack(op: Op) -> Value:
    parts, axes = op.inputs, []
    for d in range(parts[0].ndim):
        meeting = [op.axis(v, d) for v in parts]
        known = next((axis for axis in meeting if axis is not None), None)
        for axis in meeting:
            op.unify(known, axis)
        axes.append(known if all(axis is not None for axis in meeting) else None)
    axes.insert(op["dim"] % (len(axes) + 1), None)
    return op.output(axes, carried(parts, axes))


@register_rule(aten.repeat.default, aten.tile.default)
def repeat(op: Op) -> Value:
    x, shape = op.inputs[0], op.shape
    new = len(shape) - x.ndim
    axes: Axes = [None] * len(shape)
    for d, axis in enumerate(op.axes(x)):
        times = shape[new + d] // max(x.shape[d], 1)
        if x.shape[d] == 1 < times:
            op.pin(axis, f"is broadcast in {op.label}")
        else:
            axes[new + d] = op.repeated(axis, times)
    return op.output(axes, carried([x], axes))


@register_rule(aten.repeat_interleave.self_int)
def repeat_interleave(op: Op) -> Result:
    x, dim = op.inputs[0], op["dim"]
    if dim is None and x.ndim == 1:
        dim = 0
    if dim is None:
        op.pin_all(f"is mixed with another axis by {op.label}")
        return op.fixed()
    axes = op.axes(x)
    axes[dim] = op.interleaved(axes[dim], op["repeats"])
    return op.output(axes, carried([x], axes))


@register_rule(aten.expand.default, aten.expand_as.default, aten.broadcast_to.default)
def expand(op: Op) -> Value:
    """A position that is repeated makes as many as there are features where it goes: they need no zero of their own."""
    x, shape = op.inputs[0], op.shape
    new, axes = len(shape) - x.ndim, []
    for d, size in enumerate(shape):
        own = None if d < new else op.axis(x, d - new)
        if d >= new and x.shape[d - new] == size:
            axes.append(own)
            continue
        op.pin(own, f"is broadcast in {op.label}")
        axes.append(op.fresh_axis(size) if size > 1 else None)
        op.doubt(axes[-1])
        op.network.broadcast.append(axes[-1])
    if len(op.inputs) > 1:
        for d, axis in enumerate(axes):
            op.unify(axis, op.axis(op.inputs[1], d))
    return op.output(axes, carried([x], axes))
