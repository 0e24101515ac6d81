"""Normalisation. Per channel (batch, instance norm) a feature is on its own; over channels it is counted with the others."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from ..features import Axis
from ..op import Axes, Masks, Op
from ..value import Read, Step, Value, Zeros
from .conv import equal_in_groups
from .registry import named, register_rule
from .zeros import both, either

aten = torch.ops.aten
ops = torch.ops.shrinknets_fast


def channel_axes(op: Op, x: Value, names: Iterable[str]) -> Axes:
    """Axes for a norm per channel: everything else is normalised together. Parameters and statistics follow the channel."""
    axes = op.axes(x)
    for d, axis in enumerate(axes):
        if d > 1:
            op.pin(axis, f"is normalised with others by {op.label}")
    for name in names:
        if op[name] is not None:
            op.unify(axes[1], op.axis(op[name], 0))
    if op["weight"] is not None:
        op.makes(axes[1])
    return axes


def scaled_zero(
    zero: torch.Tensor | None, weight: Value | None, bias: Value | None, zeros: Zeros
) -> torch.Tensor | None:
    """Where zero * weight + bias is zero."""
    if weight is not None:
        zero = either(zero, zeros(weight, 0))
    return zero if bias is None else both(zero, zeros(bias, 0))


@register_rule(aten.batch_norm.default)
def batch_norm(op: Op) -> Value:
    """Its output is zero only where both of its affine parameters are (folded by a filter): statistics move the rest."""
    x, weight, bias = op["input"], op["weight"], op["bias"]
    axes = channel_axes(op, x, ("weight", "bias", "running_mean", "running_var"))
    op.pin(axes[0], f"is normalised with others by {op.label}")
    return op.output(
        axes, lambda zeros: [scaled_zero(None, weight, bias, zeros) if d == 1 else None for d in range(x.ndim)]
    )


@register_rule(aten.instance_norm.default)
def instance_norm(op: Op) -> Value:
    """Each channel of each sample on its own: with its own statistics, zeros stay zero but for the bias."""
    x, weight, bias = op["input"], op["weight"], op["bias"]
    axes = channel_axes(op, x, ("weight", "bias", "running_mean", "running_var"))

    def zero(zeros: Zeros) -> Masks:
        still = zeros(x, 1) if op["use_input_stats"] else None
        return [scaled_zero(still, weight, bias, zeros) if d == 1 else None for d in range(x.ndim)]

    return op.output(axes, zero)


@register_rule(*named("layer_norm", "rms_norm"))
def layer_norm(op: Op) -> Value:
    """The last axes are averaged over: their features are counted, so none may leave. One with a filter would leave out some."""
    x, bias = op["input"], op.get("bias")
    axes = op.axes(x)
    first = x.ndim - len(op["normalized_shape"])
    counts = f"is normalised with others by {op.label}, which counts its features"
    for d in range(first, x.ndim - 1):
        op.pin(axes[d], counts)
    if first != x.ndim - 1:
        op.pin(axes[-1], counts)
    for name in ("weight", "bias"):
        value = op.get(name)
        for d in range(0 if value is None else value.ndim):
            op.unify(axes[first + d], op.axis(value, d))
    result = op.output(axes, lambda zeros: [zeros(x, d) if d < first and bias is None else None for d in range(x.ndim)])
    op.counts(result, -1, counts)
    return result


@register_rule(aten.group_norm.default)
def group_norm(op: Op) -> Value:
    """Channels of a group are averaged over, so none may leave."""
    x = op["input"]
    axes = op.axes(x)
    for axis in axes[1:]:
        op.pin(axis, f"is normalised with others by {op.label}, which counts its features")
    for name in ("weight", "bias"):
        if op[name] is not None:
            op.unify(axes[1], op.axis(op[name], 0))
    return op.output(axes)


def of_alive(op: Op, axis: Axis | None) -> None:
    """A filtered norm ignores its input where theta is dead, and counts it everywhere else, zeros too."""
    theta = op["theta"]
    for name in ("theta", "weight", "bias"):
        if op[name] is not None:
            op.unify(axis, op.axis(op[name], 0))
    if axis is not None:
        counted = Value((len(axis),), None, None, [axis])
        op.network.steps.append(Step(op, (counted,), lambda zeros: [[zeros.dead(theta)]]))
        op.network.reads.append(Read(counted, 0, op))


@register_rule(ops.layer_norm.default)
def filtered_layer_norm(op: Op) -> list[Value]:
    """(y, mean, rstd) over the last axis: dead features come out as zeros, so they may leave. Every other axis passes."""
    x, bias, theta, last = op["x"], op["bias"], op["theta"], op["x"].ndim - 1
    axes = op.axes(x)
    of_alive(op, axes[last])

    def zero(zeros: Zeros) -> list[Masks]:
        still = [zeros(x, d) if bias is None else None for d in range(last)]
        return [[*still, zeros.dead(theta)], [None], [None]]

    return op.outputs([axes, [None], [None]], zero)


@register_rule(ops.group_norm.default)
def filtered_group_norm(op: Op) -> list[Value]:
    """(y, mean, rstd) over the channels of each group, which lose equally many."""
    x, theta = op["x"], op["theta"]
    axes = op.axes(x)
    for axis in axes[2:]:
        op.pin(axis, f"is normalised with others by {op.label}")
    of_alive(op, axes[1])
    equal_in_groups(op, axes[1], op["groups"])

    def zero(zeros: Zeros) -> list[Masks]:
        return [[zeros.dead(theta) if d == 1 else None for d in range(x.ndim)], [None, None], [None, None]]

    return op.outputs([axes, [None, None], [None, None]], zero)
