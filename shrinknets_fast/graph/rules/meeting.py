"""Axes that meet by broadcasting."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..features import Axis
from ..op import Axes, Op
from ..value import Value


def meet(op: Op, sized: Sequence[tuple[Axis | None, int]]) -> Axis | None:
    """The one axis of several (axis, size) that meet by broadcasting: those of full size are unified."""
    size = max((n for _, n in sized if n != 1), default=1)
    full = [axis for axis, n in sized if n == size]
    for axis, n in sized:
        if n != size:  # one feature that meets many
            op.pin(axis, f"is broadcast in {op.label}")
    known = [axis for axis in full if axis is not None]
    for axis in full:
        if known:
            op.unify(known[0], axis)
    return known[0] if known else None  # pinned by now where another cannot shrink


def broadcast_axes(op: Op, values: Iterable[Value], ndim: int) -> Axes:
    """The axes of the broadcast result; what meets at one of its positions is unified."""
    return [
        meet(op, [(op.axis(v, v.ndim - back), v.shape[v.ndim - back]) for v in values if v.ndim >= back])
        for back in range(ndim, 0, -1)
    ]
