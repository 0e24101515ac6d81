"""Features: the things that live and die. Every position of every axis that can shrink belongs to exactly one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from .order import kept_positions

if TYPE_CHECKING:
    from .balance import Balance

Fills = Sequence[tuple[torch.Tensor, torch.Tensor]]  # (a hub's features, positions that it keeps), in a new order


class Axis:
    """One dimension of one or more tensors: the feature that each of its positions belongs to.

    A flattened channel appears once per pixel, so a feature may stand at many positions of one axis.
    """

    __slots__ = ("ids",)

    def __init__(self, ids: torch.Tensor) -> None:
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)


class FeatureSpace:
    """All features of a network. While the graph is read, axes get features and features are unified; then it settles."""

    def __init__(self) -> None:
        self.count = 0
        self.axes: list[Axis] = []
        self.pins: list[tuple[Axis, str]] = []  # (axis, reason): the features of this axis never leave
        # (axis, label): whether the user's code follows this axis when it shrinks is to be tried
        self.doubts: list[tuple[Axis, str]] = []
        self.balances: list[Balance] = []
        self._equal: list[tuple[torch.Tensor, torch.Tensor]] = []

    def axis(self, ids: torch.Tensor) -> Axis:
        axis = Axis(ids)
        self.axes.append(axis)
        return axis

    def new_axis(self, size: int) -> Axis:
        """An axis of ``size`` fresh features."""
        self.count += size
        return self.axis(torch.arange(self.count - size, self.count))

    def unify(self, first: Axis | None, second: Axis | None, reason: str) -> None:
        """Position by position the two axes hold the same features. None stands for positions that cannot leave."""
        if first is second:
            return
        if first is None or second is None:
            self.pin(first if second is None else second, reason)
        else:
            self._equal.append((first.ids, second.ids))

    def unify_ids(self, first: torch.Tensor, second: torch.Tensor) -> None:
        self._equal.append((first, second))

    def pin(self, axis: Axis | None, reason: str) -> None:
        if axis is not None:
            self.pins.append((axis, reason))

    def settle(self) -> None:
        """Give unified features one number each, 0 to count - 1."""
        root = torch.arange(self.count)
        if self._equal:
            first, second = (torch.cat(side) for side in zip(*self._equal, strict=True))
            root = connected(root, first, second)
        _, root = torch.unique(root, return_inverse=True)
        self.count = int(root.max()) + 1 if len(root) else 0
        for axis in self.axes:
            axis.ids = root[axis.ids]
        self._equal = []

    def remove(self, gone: torch.Tensor, fills: Fills = ()) -> None:
        """Take the features in the bool mask ``gone`` out of every axis, as the plan's order says; numbers stay as they are."""
        if not self.axes:
            return
        ids = torch.cat([axis.ids for axis in self.axes])
        stays = ~gone[ids]
        before = torch.nn.functional.pad(stays.cumsum(0), (1, 0))  # all axes at once: there are hundreds
        ends = torch.tensor([len(axis) for axis in self.axes]).cumsum(0)
        sizes = before[ends].diff(prepend=torch.zeros(1, dtype=torch.int64)).tolist()
        filled = {int(hub_ids[0]) for hub_ids, _ in fills}
        for axis, left in zip(self.axes, ids[stays].split(sizes), strict=True):
            if filled and len(axis) and int(axis.ids[0]) in filled:
                left = axis.ids[kept_positions(axis.ids, gone, fills)]
            axis.ids = left


def connected(root: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """The smallest number of each one's connected component, for the edges first[i] - second[i]."""
    while True:
        low = torch.minimum(root[first], root[second])
        new = root.scatter_reduce(0, first, low, "amin").scatter_reduce(0, second, low, "amin")
        # linking the old roots too joins whole components at once: a few rounds instead of the graph's diameter
        new = new.scatter_reduce(0, root[first], low, "amin").scatter_reduce(0, root[second], low, "amin")
        new = new[new]
        if torch.equal(new, root):
            return root
        root = new
