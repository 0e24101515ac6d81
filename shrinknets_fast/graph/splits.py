"""Views that split an axis of features, such as (heads * width) into (heads, width): which of the parts loses some."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from .features import Axis
from .value import Value

if TYPE_CHECKING:
    from .op import Op

CHOICES = "_shrinking_splits"  # on the model: who reads it next, with filters in it, must see the same parts
Key = tuple[str, int]  # the module whose forward calls it, and which of its splits it is
Choices = Mapping[Key, int]
View = tuple[tuple[int, ...], tuple[int, ...]]  # shapes: of what is viewed, and as what


def chosen(model: nn.Module) -> dict[Key, int]:
    return dict(vars(model).get(CHOICES, {}))


def choose(model: nn.Module, choices: Choices) -> None:
    vars(model)[CHOICES] = dict(choices)


@dataclass(frozen=True)
class Split:
    """``whole``: the axis before; ``part``: the dimension of the view that loses features; ``parts``: how many could; ``last``:
    whether the axis is the last one.
    """

    op: Op
    whole: Axis
    part: int
    parts: int
    last: bool


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
            self.found.setdefault(key, []).append(Split(op, whole, part, len(parts), last))
        return part

    def for_each_feature(self, thetas: Iterable[Axis | None]) -> dict[Key, int]:
        """Choices for the splits of features that have a theta each: a head would need all of its thetas dead at once, so the
        features leave that stand at the same place in every head.
        """
        tied = [axis.ids for axis in thetas if axis is not None and len(axis.ids.unique()) < len(axis)]
        ids = torch.cat(tied) if tied else torch.empty(0, dtype=torch.int64)
        return {key: n for key, n in self.others(ids).items() if n == 1 and self.found[key][0].last}

    def others(self, ids: torch.Tensor) -> dict[Key, int]:
        """Choices to try next, for those that split any of these features."""
        met = {
            key for key, splits in self.found.items() if any(bool(torch.isin(s.whole.ids, ids).any()) for s in splits)
        }
        return {key: n for key in met if (n := self.choices.get(key, 0) + 1) < self.found[key][0].parts}

    def views(self, gone: torch.Tensor) -> dict[View, set[View]]:
        """{a split: what it may be without the features in ``gone``}: code with a size written into it may take what is left of
        one part for the other.
        """
        found: dict[View, set[View]] = {}
        for split in (split for splits in self.found.values() for split in splits):
            view = (split.op.inputs[0], split.op.results[0])
            left = sizes(view, gone)
            for before in {sizes(view, None), sizes(view, torch.zeros_like(gone))}:
                found.setdefault(before, set()).add(left)
        return found


def sizes(view: tuple[Value, Value], gone: torch.Tensor | None) -> View:
    """When it was read, or without the features in the mask ``gone``."""

    def shape(value: Value) -> tuple[int, ...]:
        pairs = zip(value.shape, value.axes, strict=True)
        return tuple(n if axis is None or gone is None else int((~gone[axis.ids]).sum()) for n, axis in pairs)

    return shape(view[0]), shape(view[1])
