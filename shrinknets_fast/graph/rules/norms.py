"""Normalisation. Per channel (batch, instance norm) a feature is on its own; over channels it is counted with the others."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from ..op import Axes, Masks, Op
from ..value import Value, Zeros
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
    for d in range(first, x.ndim if first < x.ndim - 1 else first):
        op.pin(axes[d], counts(op))
    for name in ("weight", "bias"):
        value = op.get(name)
        for d in range(0 if value is None else value.ndim):
            op.unify(axes[first + d], op.axis(value, d))
    result = op.output(axes, lambda zeros: [zeros(x, d) if d < first and bias is None else None for d in range(x.ndim)])
    op.counts(result, -1, counts(op))
    return result


@register_rule(aten.group_norm.default)
def group_norm(op: Op) -> Value:
    """Channels of a group are averaged over, so none may leave. One with a filter would leave out some, as many of each group."""
    x = op["input"]
    axes = channels_in_groups(op, x, op["num_groups"], ("weight", "bias"))
    result = op.output(axes)
    op.counts(result, 1, counts(op))
    return result


def counts(op: Op) -> str:
    return f"is normalised with others by {op.label}, which counts its features"


def channels_in_groups(op: Op, x: Value, groups: int, names: Iterable[str]) -> Axes:
    """Groups stay equal, so they lose equally many. Parameters follow the channel."""
    axes = op.axes(x)
    for axis in axes[2:]:
        op.pin(axis, f"is normalised with others by {op.label}")
    for name in names:
        if op[name] is not None:
            op.unify(axes[1], op.axis(op[name], 0))
    op.balance(axes[1], groups)
    return axes


@register_rule(ops.layer_norm.default)
def filtered_layer_norm(op: Op) -> list[Value]:
    """(y, mean, rstd) over the last axis: dead features come out as zeros, so they may leave. Every other axis passes."""
    x, bias, theta, last = op["x"], op["bias"], op["theta"], op["x"].ndim - 1
    axes = op.axes(x)
    for name in ("theta", "weight", "bias"):
        if op[name] is not None:
            op.unify(axes[last], op.axis(op[name], 0))

    def zero(zeros: Zeros) -> list[Masks]:
        still = [zeros(x, d) if bias is None else None for d in range(last)]
        return [[*still, zeros(theta, 0)], [None], [None]]

    results = op.outputs([axes, [None], [None]], zero)
    op.counts(results[0], last, counts(op))
    return results


@register_rule(ops.group_norm.default)
def filtered_group_norm(op: Op) -> list[Value]:
    """(y, mean, rstd) over the channels of each group, which lose equally many."""
    x, theta = op["x"], op["theta"]
    axes = channels_in_groups(op, x, op["groups"], ("theta", "weight", "bias"))

    def zero(zeros: Zeros) -> list[Masks]:
        return [[zeros(theta, 0) if d == 1 else None for d in range(x.ndim)], [None, None], [None, None]]

    results = op.outputs([axes, [None, None], [None, None]], zero)
    op.counts(results[0], 1, counts(op))
    return results
