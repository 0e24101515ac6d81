"""Dense layers and tables: they add up their input's features and make new ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from ..features import Axis
from ..op import Masks, Op
from ..value import Value, Zeros
from .registry import register_rule
from .zeros import both, changed, either

aten = torch.ops.aten


def contract(op: Op, x: Value, x_dim: int, weight: Value, weight_dim: int) -> None:
    """The sum over an axis of ``x`` against an axis of ``weight``: both hold the same features, read here."""
    op.unify(op.axis(x, x_dim), op.axis(weight, weight_dim))
    op.reads(x, x_dim)
    if op.axis(x, x_dim) is None:
        op.pin(op.axis(weight, weight_dim), f"reads an input of {op.label} that cannot shrink")


def made_rows(
    op: Op, weight: Value, bias: Value | None, dim: int = 0
) -> tuple[Axis | None, Callable[[Zeros], torch.Tensor | None]]:
    """The axis of features that ``weight`` makes along ``dim``, and its zero function: zero row and zero bias."""
    rows = op.axis(weight, dim)
    op.makes(rows)
    if bias is not None:
        op.unify(rows, op.axis(bias, 0))
    return rows, lambda zeros: with_bias(zeros(weight, dim), bias, zeros)


def with_bias(zero: torch.Tensor | None, bias: Value | None, zeros: Zeros) -> torch.Tensor | None:
    """Where a sum that is zero at ``zero`` still is with a bias added."""
    return zero if bias is None else both(zero, zeros(bias, 0))


@register_rule(aten.linear.default)
def linear(op: Op) -> Value:
    x, weight, bias = op["input"], op["weight"], op["bias"]
    contract(op, x, -1, weight, 1)
    rows, zero = made_rows(op, weight, bias)
    axes = [*op.axes(x)[:-1], rows]
    return op.output(axes, lambda zeros: [None] * (x.ndim - 1) + [zero(zeros)])


@register_rule(aten.bilinear.default)
def bilinear(op: Op) -> Value:
    first, second, weight, bias = op["input1"], op["input2"], op["weight"], op["bias"]
    contract(op, first, -1, weight, 1)
    contract(op, second, -1, weight, 2)
    rows, zero = made_rows(op, weight, bias)
    axes = op.axes(first)[:-1]
    for d, axis in enumerate(axes):
        op.unify(axis, op.axis(second, d))
    return op.output([*axes, rows], lambda zeros: [None] * len(axes) + [zero(zeros)])


@register_rule(aten.prelu.default)
def prelu(op: Op) -> Value:
    """One slope for all, or one per feature; zero in, zero out."""
    x, weight = op["self"], op["weight"]
    axes = op.axes(x)
    if weight.shape and weight.shape[0] > 1:
        op.unify(axes[min(1, x.ndim - 1)], op.axis(weight, 0))
    return op.output(axes, lambda zeros: zeros.of(x))


@register_rule(aten.embedding.default)
def embedding(op: Op) -> Value:
    """A table: its rows are looked up by number, its columns are features."""
    weight, indices = op["weight"], op["indices"]
    op.pin(op.axis(weight, 0), f"is looked up by number in {op.label}")
    columns = op.axis(weight, 1)
    op.makes(columns)
    return op.output([*op.axes(indices), columns], lambda zeros: [None] * indices.ndim + [zeros(weight, 1)])


@register_rule(aten.glu.default)
def glu(op: Op) -> Value:
    """First half times the sigmoid of the second: the j-th features of both leave together."""
    x, dim = op["self"], op["dim"] % op["self"].ndim
    axes = op.axes(x)
    axes[dim] = op.tie(axes[dim], x.shape[dim] // 2)

    def zero(zeros: Zeros) -> Masks:
        known = zeros.of(x)
        known[dim] = changed(known[dim], lambda mask: mask[: len(mask) // 2])
        return known

    return op.output(axes, zero)


def product_zeros(
    first: Value, second: Value, pairs: Iterable[tuple[int | None, int | None]], zeros: Zeros
) -> list[torch.Tensor | None]:
    """Per (dim of first, dim of second), each perhaps None: where a product is zero along it."""
    return [either(None if a is None else zeros(first, a), None if b is None else zeros(second, b)) for a, b in pairs]
