"""Views that split an axis of features, such as (heads * width) into (heads, width): which of the parts loses some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from .features import Axis

if TYPE_CHECKING:
    from .op import Op

CHOICES = "_shrinking_splits"  # on the model: who reads it next, with filters in it, must see the same parts
Key = tuple[str, int]  # the module whose forward calls it, and which of its splits it is
Choices = Mapping[Key, int]
Shape = tuple[int, ...]


def chosen(model: nn.Module) -> dict[Key, int]:
    return dict(vars(model).get(CHOICES, {}))


def choose(model: nn.Module, choices: Choices) -> None:
    vars(model)[CHOICES] = dict(choices)


@dataclass(frozen=True)
class Split:
    """``whole``: the axis before; ``part``: the dimension of the view that loses features; ``parts``: how many could."""

    op: Op
    whole: Axis
    part: int
    parts: int


class Splits:
    """choices: for some splits, which of the possible parts it is, by default the first.

    Of the last axis, as attention splits it, the part before the last leaves first: heads; of any other axis the last part, as of
    shuffled channels.
    """

    def __init__(self, choices: Choices) -> None:
        self.choices = choices
        self.found: dict[Key, list[Split]] = {}  # in each mode
        self._counts: dict[tuple[str, str], int] = {}

    def keeper(self, op: Op, whole: Axis | None, parts: Sequence[int], last: bool) -> int:
        """One of ``parts``, dimensions of the view in order."""
        place = self._counts[op.mode, op.module] = self._counts.get((op.mode, op.module), -1) + 1
        order = [parts[-2], parts[-1], *parts[:-2]] if last else [parts[-1], *parts[:-1]]
        key = (op.module, place)
        part = order[self.choices.get(key, 0)]
        if whole is not None:
            self.found.setdefault(key, []).append(Split(op, whole, part, len(parts)))
        return part

    def others(self, ids: torch.Tensor) -> dict[Key, int]:
        """Choices to try next, for those that split any of these features."""
        met = {
            key for key, splits in self.found.items() if any(bool(torch.isin(s.whole.ids, ids).any()) for s in splits)
        }
        return {key: n for key in met if (n := self.choices.get(key, 0) + 1) < self.found[key][0].parts}

    def shapes(self, gone: torch.Tensor) -> dict[Shape, set[Shape]]:
        """{shape of a split: those it may have without the features in ``gone``}: code with a size written into it may take
        what is left of the one for the other.
        """
        found: dict[Shape, set[Shape]] = {}
        for split in (split for splits in self.found.values() for split in splits):
            (value,) = split.op.results
            sizes = [(n, n if axis is None else len(axis)) for n, axis in zip(value.shape, value.axes, strict=True)]
            left = tuple(
                n if axis is None else int((~gone[axis.ids]).sum())
                for n, axis in zip(value.shape, value.axes, strict=True)
            )
            for before in {tuple(n for n, _ in sizes), tuple(n for _, n in sizes)}:  # when it was read, and now
                found.setdefault(before, set()).add(left)
        return found
