"""Ops that move positions: views, permutations, concatenation. Features keep their values and change their places."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from ..features import Axis
from ..op import Axes, Op
from ..value import Value
from .registry import register_rule
from .zeros import carried

aten = torch.ops.aten


def view_groups(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Pairs of dimension lists (of the input, of the output) with equal products, left to right."""
    groups, i, j = [], 0, 0
    while i < len(before) and j < len(after):
        left, right, size_left, size_right = [i], [j], before[i], after[j]
        while size_left != size_right:
            if size_left < size_right:
                i += 1
                left.append(i)
                size_left *= before[i]
            else:
                j += 1
                right.append(j)
                size_right *= after[j]
        groups.append((left, right))
        i, j = i + 1, j + 1
    return [*groups, (list(range(i, len(before))), list(range(j, len(after))))]  # what is left over has size 1


def regrouped(op: Op, x: Value, left: list[int], right: list[int], shape: Sequence[int]) -> Axes:
    """The output axes of one group of a view; ``right`` are the output's dimensions in it, ``shape`` its whole shape."""
    axes = {d: op.axis(x, d) for d in left}
    if len(left) == len(right) == 1:
        return [axes[left[0]]]
    featured: list[int | None] = [d for d in left if axes[d] is not None and x.shape[d] > 1]
    if len(featured) > 1:  # (groups, times): the code's own number of times stays
        featured = [d for d in featured if d is not None and not any(axes[d] is axis for axis in op.network.broadcast)]
    if len(featured) != 1:
        featured = [None]
    for d in left:
        if d != featured[0]:
            op.pin(axes[d], f"is mixed with another axis by {op.label}")
    if featured[0] is None:
        return [None] * len(right)
    axis = axes[featured[0]]
    columns = {
        k: column
        for i, k in enumerate(right)
        if shape[k] > 1
        for column in [positions(x, left, featured[0], right, shape, i)]
    }
    constant = [k for k, column in columns.items() if bool((column == column[:, :1]).all())]
    keeper = (
        constant[0]
        if constant
        else op.network.splits.keeper(op, axes[featured[0]], list(columns), featured[0] == x.ndim - 1)
    )
    if not constant:
        op.doubt(axis)
        # (heads, width): a head leaves as a whole, or a feature leaves every head, so that the view stays a box
        sets = columns[keeper]
        op.tie(op.rearranged(axis, lambda ids: ids[sets.reshape(-1)]), sets.shape[1], neighbours=True)
    return [op.rearranged(axis, lambda ids: ids[columns[keeper][:, 0]]) if k == keeper else None for k in right]


def positions(
    x: Value, left: Sequence[int], featured: int, right: Sequence[int], shape: Sequence[int], which: int
) -> torch.Tensor:
    """(size, rest): for each index along one of the output's dimensions, the positions of the featured axis that lie there."""
    whole = torch.arange(x.shape[featured]).reshape([-1 if d == featured else 1 for d in left])
    places = whole.expand([x.shape[d] for d in left]).reshape([shape[k] for k in right])
    return places.movedim(which, 0).reshape(shape[right[which]], -1)


@register_rule(aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.flatten.using_ints)
@register_rule(
    aten.unflatten.int, aten.squeeze, aten.squeeze_, aten.unsqueeze, aten.unsqueeze_, aten.view_as, aten.reshape_as
)
def view(op: Op) -> Value:
    x = op.inputs[0]
    shape = tuple(int(size) for size in op.shape)
    axes: Axes = [None] * len(shape)
    if 0 in shape:
        op.pin_all(f"is empty in {op.label}")
        return op.output(axes)
    if shape.count(1) > x.shape.count(1) and "squeeze" not in op.name:
        # (groups, 1) may stand for (groups, width // groups): a trial shows it
        for axis in op.axes(x):
            op.doubt(axis)
    for left, right in view_groups(x.shape, shape):
        for k, axis in zip(right, regrouped(op, x, left, right, shape), strict=True):
            axes[k] = axis
    return op.output(axes, carried([x], axes))


def permuted(op: Op, order: Iterable[int]) -> Value:
    x = op.inputs[0]
    axes = [op.axis(x, d) for d in order]
    return op.output(axes, carried([x], axes))


@register_rule(aten.permute.default)
def permute(op: Op) -> Value:
    return permuted(op, op["dims"])


@register_rule(aten.transpose.int, aten.swapaxes.default, aten.swapdims.default)
def transpose(op: Op) -> Value:
    order = list(range(op.inputs[0].ndim))
    _, first, second = op.arguments.values()
    order[first], order[second] = order[second], order[first]
    return permuted(op, order)


@register_rule(aten.t.default, aten.numpy_T.default)
def t(op: Op) -> Value:
    return permuted(op, range(op.inputs[0].ndim)[::-1])


@register_rule(aten.movedim.int, aten.movedim.intlist, aten.moveaxis.int, aten.moveaxis.intlist)
def movedim(op: Op) -> Value:
    order = list(range(op.inputs[0].ndim))
    sources, places = op["source"], op["destination"]
    pairs = [(sources, places)] if isinstance(sources, int) else list(zip(sources, places, strict=True))
    moved = {place % len(order): source % len(order) for source, place in pairs}
    rest = iter(d for d in order if d not in moved.values())
    return permuted(op, [moved[d] if d in moved else next(rest) for d in order])


@register_rule(aten.mT.default, aten.adjoint.default, aten.mH.default)
def last_two(op: Op) -> Value:
    order = list(range(op.inputs[0].ndim))
    return permuted(op, [*order[:-2], order[-1], order[-2]])


@register_rule(aten.cat.default, aten.concat.default, aten.concatenate.default)
def cat(op: Op) -> Value:
    parts = [v for v in op.inputs if isinstance(v, Value) and v.shape != (0,)]
    ndim = parts[0].ndim
    dim = op["dim"] % ndim
    axes: list[Axis | None] = []
    for d in range(ndim):
        meeting = [op.axis(v, d) for v in parts]
        if all(axis is None for axis in meeting):
            axes.append(None)
        elif d == dim:
            axes.append(op.joined([(op.axis(v, d), v.shape[d]) for v in parts]))
        else:
            known = next(axis for axis in meeting if axis is not None)
            for axis in meeting:
                op.unify(known, axis)
            axes.append(known if all(axis is not None for axis in meeting) else None)
    return op.output(axes, carried(parts, axes))
