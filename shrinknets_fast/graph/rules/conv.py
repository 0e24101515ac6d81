"""Convolutions: dense, grouped and depthwise, plain and transposed."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..features import Axis
from ..op import Axes, Op
from ..value import Value, Zeros
from .layers import contract, made_rows, with_bias
from .registry import register_rule
from .zeros import both, changed, either

aten = torch.ops.aten


def spatial_axes(op: Op, x: Value, weight: Value, rows: Axis | None) -> Axes:
    """The output's axes: batch axes pass, spatial ones hold nothing that could leave."""
    channels = x.ndim - weight.ndim + 1  # 0 without a batch
    axes = [op.axis(x, d) for d in range(channels)] + [rows]
    for d in range(channels + 1, x.ndim):
        op.pin(op.axis(x, d), f"is a spatial axis of {op.label}")
    return axes + [None] * (x.ndim - channels - 1)


def result(op: Op, x: Value, weight: Value, rows: Axis | None, zero: Callable[[Zeros], torch.Tensor | None]) -> Value:
    axes = spatial_axes(op, x, weight, rows)
    channels = x.ndim - weight.ndim + 1
    return op.output(axes, lambda zeros: [zero(zeros) if d == channels else None for d in range(len(axes))])


def read_in_groups(op: Op, x: Value, channels: int, weight: Value, groups: int) -> None:
    """Channels of ``x`` against one group's channels in ``weight``."""
    wide, narrow, rows = op.axis(x, channels), op.axis(weight, 1), op.axis(weight, 0)
    if wide is None or narrow is None:
        op.unify(wide, narrow)
        return
    if rows is None:  # nothing could follow if other positions left each group
        op.unify(op.tie(wide, len(wide) // groups), narrow)
    else:
        op.balance(wide, groups, narrow, rows)
    op.reads(x, channels)


@register_rule(aten.conv1d, aten.conv2d, aten.conv3d)
def conv(op: Op) -> Value:
    x, weight, bias, groups = op["input"], op["weight"], op["bias"], op["groups"]
    channels = x.ndim - weight.ndim + 1
    if groups > 1 and weight.shape[1] == 1:
        return depthwise(op, x, channels, weight, bias, weight.shape[0] // groups)
    if groups > 1:
        read_in_groups(op, x, channels, weight, groups)
    else:
        contract(op, x, channels, weight, 1)
    rows, zero = made_rows(op, weight, bias)
    if groups > 1:
        op.balance(rows, groups)
    return result(op, x, weight, rows, zero)


def depthwise(op: Op, x: Value, channels: int, weight: Value, bias: Value | None, multiplier: int) -> Value:
    """Each channel makes ``multiplier`` of its own: they live and leave as one feature."""
    rows, zero = made_rows(op, weight, bias)
    axis = op.axis(x, channels)
    if axis is None or rows is None:
        op.unify(axis, rows)
        return result(op, x, weight, rows, zero if rows is not None else lambda zeros: None)
    op.unify(op.interleaved(axis, multiplier), rows)

    def zero_out(zeros: Zeros) -> torch.Tensor | None:
        empty = changed(zeros(x, channels), lambda mask: mask.repeat_interleave(multiplier))
        return either(zero(zeros), with_bias(empty, bias, zeros))

    return result(op, x, weight, rows, zero_out)


@register_rule(aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d)
def conv_transpose(op: Op) -> Value:
    """The weight is (inputs, outputs of one group, ...)."""
    x, weight, bias, groups = op["input"], op["weight"], op["bias"], op["groups"]
    channels = x.ndim - weight.ndim + 1
    if groups == 1:
        contract(op, x, channels, weight, 0)
        rows, zero = made_rows(op, weight, bias, 1)
        return result(op, x, weight, rows, zero)
    axis, multiplier = op.axis(x, channels), weight.shape[1]
    known = [axis, op.axis(weight, 0), op.axis(weight, 1)]
    if None in known:
        for met in (*known, None if bias is None else op.axis(bias, 0)):
            op.unify(None, met)
        return result(op, x, weight, None, lambda zeros: None)
    op.unify(axis, op.axis(weight, 0))
    if weight.shape[0] == groups:
        rows = op.interleaved(axis, multiplier)
    else:
        op.reads(x, channels)
        op.balance(axis, groups)
        rows = op.repeated(op.axis(weight, 1), groups)
    op.makes(rows)
    if bias is not None:
        op.unify(rows, op.axis(bias, 0))

    def zero_out(zeros: Zeros) -> torch.Tensor | None:
        if weight.shape[0] == groups:
            empty = changed(
                either(zeros(x, channels), zeros(weight, 0)), lambda mask: mask.repeat_interleave(multiplier)
            )
        else:
            empty = changed(zeros(weight, 1), lambda mask: mask.repeat(groups))
        return None if empty is None else both(empty, empty if bias is None else zeros(bias, 0))

    return result(op, x, weight, rows, zero_out)
