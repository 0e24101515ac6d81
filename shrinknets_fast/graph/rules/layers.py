"""Layers with weights: they add up their input's features and make new ones, or rescale each feature."""

import torch

from .registry import register_rule
from .zeros import both

aten = torch.ops.aten


def contract(op, x, x_dim, weight, weight_dim):
    """The sum over an axis of ``x`` against an axis of ``weight``: both hold the same features, read here."""
    op.unify(op.axis(x, x_dim), op.axis(weight, weight_dim))
    op.reads(x, x_dim)
    if op.axis(x, x_dim) is None:
        op.pin(op.axis(weight, weight_dim), f"reads an input of {op.label} that cannot shrink")


def made_rows(op, weight, bias):
    """The axis of features that the rows of ``weight`` make, and its zero function: zero row and zero bias."""
    rows = op.axis(weight, 0)
    op.makes(rows)
    if bias is not None:
        op.unify(rows, op.axis(bias, 0))

    def zero(zeros):
        return zeros(weight, 0) if bias is None else both(zeros(weight, 0), zeros(bias, 0))

    return rows, zero


@register_rule(aten.linear.default)
def linear(op):
    x, weight, bias = op["input"], op["weight"], op["bias"]
    contract(op, x, -1, weight, 1)
    rows, zero = made_rows(op, weight, bias)
    axes = [op.axis(x, d) for d in range(x.ndim - 1)] + [rows]
    return op.output(axes, lambda zeros: [None] * (x.ndim - 1) + [zero(zeros)])


@register_rule(*[getattr(aten, f"conv{n}d") for n in (1, 2, 3)])
def conv(op):
    x, weight, bias = op["input"], op["weight"], op["bias"]
    unbatched = x.ndim == weight.ndim - 1
    channels = 0 if unbatched else 1
    if op["groups"] != 1:
        op.pin(op.axis(x, channels), f"is read by {op.label} in groups")
        op.pin(op.axis(weight, 0), f"is made by {op.label} in groups")
    else:
        contract(op, x, channels, weight, 1)
    rows, zero = made_rows(op, weight, bias)
    axes = [None] * x.ndim
    axes[:channels] = [op.axis(x, d) for d in range(channels)]
    axes[channels] = rows
    for d in range(channels + 1, x.ndim):
        op.pin(op.axis(x, d), f"is a spatial axis of {op.label}")
    return op.output(axes, lambda zeros: [zero(zeros) if d == channels else None for d in range(len(axes))])


@register_rule(aten.batch_norm.default)
def batch_norm(op):
    """Each feature on its own. Its output is zero only where both of its affine parameters are (folded by a filter)."""
    x, weight, bias = op["input"], op["weight"], op["bias"]
    axes = [op.axis(x, d) for d in range(x.ndim)]
    for name in ("weight", "bias", "running_mean", "running_var"):
        if op[name] is not None:
            op.unify(axes[1], op.axis(op[name], 0))
    if weight is not None:
        op.makes(axes[1])

    def zero(zeros):
        if weight is None:
            return [None] * len(axes)
        shift = zeros(weight, 0) if bias is None else zeros(bias, 0)
        return [both(zeros(weight, 0), shift) if d == 1 else None for d in range(len(axes))]

    return op.output(axes, zero)
