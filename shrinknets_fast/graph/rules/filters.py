"""Where features die: the package's own two ops."""

from __future__ import annotations

import torch

from ..op import Masks, Op
from ..value import Value, Zeros
from .registry import register_rule
from .zeros import either

ops = torch.ops.shrinknets_fast


@register_rule(ops.fold.default)
def fold(op: Op) -> list[Value]:
    """(weight, bias, theta) to folded weight and bias: a dead feature's row and bias are zero."""
    weight, bias, theta = op["weight"], op["bias"], op["theta"]
    rows = op.axis(weight, 0)
    op.unify(rows, op.axis(theta, 0))
    if bias is not None:
        op.unify(rows, op.axis(bias, 0))
    # a kernel's own dimensions hold no features, so they get no axes
    weight_axes = [op.axis(weight, d) if d < 2 else None for d in range(weight.ndim)]
    bias_axes = [None if bias is None else rows]

    def zero(zeros: Zeros) -> list[Masks]:
        dead = zeros(theta, 0)
        weight_zero = [either(zeros(weight, 0), dead)] + [zeros(weight, d) for d in range(1, weight.ndim)]
        return [weight_zero, [None if bias is None else either(zeros(bias, 0), dead)]]

    return op.outputs([weight_axes, bias_axes], zero)


@register_rule(ops.filter.default)
def filter(op: Op) -> Value:
    """x * max(0, theta) along one dimension; one theta for a whole tensor is a gate."""
    x, theta = op["x"], op["theta"]
    dim = op["dim"] % x.ndim if x.ndim else 0
    axes = op.axes(x)
    gate = theta.shape == (1,) and (x.ndim == 0 or x.shape[dim] != 1)
    if gate:
        op.pin(op.axis(theta, 0), f"is the gate of {op.label}")
    else:
        op.unify(axes[dim], op.axis(theta, 0))

    def zero(zeros: Zeros) -> Masks:
        known = zeros.of(x)
        dead = zeros(theta, 0)
        if gate and dead is not None and bool(dead):
            return [None if axis is None else torch.ones(len(axis), dtype=torch.bool) for axis in axes]
        if not gate:
            known[dim] = either(known[dim], dead)
        return known

    return op.output(axes, zero)
