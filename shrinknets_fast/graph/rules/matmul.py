"""Products of two activations: a feature that is summed over may leave where either factor is zero."""

from __future__ import annotations

import torch

from ..op import Axes, Masks, Op
from ..value import Value, Zeros
from .layers import product_zeros
from .meeting import meet
from .registry import named, register_rule
from .zeros import both

aten = torch.ops.aten


Pairs = list[tuple[int | None, int | None]]  # dimensions of the two factors


def contracted(op: Op, first: Value, first_dim: int, second: Value, second_dim: int) -> None:
    op.reads_product((first, first_dim), (second, second_dim))
    op.doubt(op.axis(first, first_dim))  # by hand, products are scaled by 1 / sqrt(width): does the scale stay?


def batched(op: Op, first: Value, second: Value, count: int) -> tuple[Axes, Pairs]:
    """The batch axes of a product of two stacks of matrices, and their (dim of first, dim of second) pairs."""
    axes, pairs = [], []
    for back in range(count, 0, -1):
        places = [(v, v.ndim - 2 - back) for v in (first, second)]
        axes.append(meet(op, [(op.axis(v, d), v.shape[d]) for v, d in places if v.ndim - 2 >= back]))
        dims = [d if v.ndim - 2 >= back and axes[-1] is not None and v.shape[d] > 1 else None for v, d in places]
        pairs.append((dims[0], dims[1]))
    return axes, pairs


def product(op: Op, first: Value, second: Value) -> tuple[Axes, Pairs]:
    """(axes, pairs) of ``first @ second``, with the summed axis read."""
    if first.ndim == 0 or second.ndim == 0:
        return [], []
    contracted(op, first, first.ndim - 1, second, max(second.ndim - 2, 0))
    axes, pairs = batched(op, first, second, max(first.ndim, second.ndim, 2) - 2)
    if first.ndim > 1:
        axes.append(op.axis(first, first.ndim - 2))
        pairs.append((first.ndim - 2, None))
    if second.ndim > 1:
        axes.append(op.axis(second, second.ndim - 1))
        pairs.append((None, second.ndim - 1))
    return axes, pairs


@register_rule(*named("matmul", "mm", "bmm", "mv", "dot", "linalg_matmul"))
def matmul(op: Op) -> Value:
    first, second = op.inputs
    axes, pairs = product(op, first, second)
    return op.output(axes, lambda zeros: product_zeros(first, second, pairs, zeros))


@register_rule(*named("addmm", "baddbmm", "addmv"))
def added_product(op: Op) -> Value:
    """input + first @ second: zero where both are."""
    added, first, second = op.inputs
    axes, pairs = product(op, first, second)
    total, shape = len(axes), op.shape
    for d in range(max(total - added.ndim, 0), total):
        own = added.ndim - (total - d)
        axes[d] = meet(op, [(axes[d], shape[d]), (op.axis(added, own), added.shape[own])])

    def zero(zeros: Zeros) -> Masks:
        known = product_zeros(first, second, pairs, zeros)
        dims = [added.ndim - (total - d) for d in range(total)]
        return [None if axes[d] is None or dims[d] < 0 else both(known[d], zeros(added, dims[d])) for d in range(total)]

    return op.output(axes, zero)


@register_rule(*named("outer", "ger"))
def outer(op: Op) -> Value:
    first, second = op.inputs
    axes = [op.axis(first, 0), op.axis(second, 0)]
    return op.output(axes, lambda zeros: [zeros(first, 0), zeros(second, 0)])


@register_rule(aten.einsum.default)
def einsum(op: Op) -> Value:
    """Each letter is an axis; one that the output lacks is summed over."""
    equation, values = op["equation"].replace(" ", ""), op.inputs
    terms, _, result = equation.partition("->")
    terms = terms.split(",")
    letters = "".join(terms)
    if "->" not in equation:
        result = "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    if "." in equation or any(len(set(term)) < len(term) for term in terms) or len(terms) != len(values):
        op.pin_all(f"is read by {op.label} with the equation {equation!r}")
        return op.fixed()
    places = {c: [(v, t.index(c)) for v, t in zip(values, terms, strict=True) if c in t] for c in set(letters)}
    axes = {}
    for c, where in places.items():
        sizes = {v.shape[d] for v, d in where}
        if len(sizes) > 1:
            for v, d in where:
                op.pin(op.axis(v, d), f"is broadcast in {op.label}")
        elif c not in result:
            op.reads_product(*where)
            op.doubt(op.axis(*where[0]))
        else:
            known = [op.axis(v, d) for v, d in where]
            for axis in known[1:]:
                op.unify(known[0], axis)
            axes[c] = known[0] if all(axis is not None for axis in known) else None

    def zero(zeros: Zeros) -> Masks:
        found = []
        for c in result:
            masks = [] if axes.get(c) is None else [m for v, d in places[c] if (m := zeros(v, d)) is not None]
            found.append(torch.stack(masks).any(0) if masks else None)
        return found

    return op.output([axes.get(c) for c in result], zero)
