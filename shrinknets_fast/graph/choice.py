"""Of the features that may leave their hubs, those that do: how many stay for the sizes' sake, and which."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypedDict

import torch

from .hub import Hub, first_positions


class Limits(TypedDict, total=False):
    """``align``: sizes are multiples of it; ``min_alive``: and at least this; ``uniform``: groups of hubs, by their index, of
    equal size. All as far as the dead allow, which stay as padding.
    """

    align: int
    min_alive: int
    uniform: Sequence[Sequence[int]]


def leaving(
    removable: torch.Tensor,
    hubs: Sequence[Hub],
    *,
    align: int = 1,
    min_alive: int = 1,
    uniform: Sequence[Sequence[int]] = (),
    removal: float = 1.0,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Mask over features: of those in the mask ``removable`` the ones that leave."""
    places = [first_positions(hub.ids) for hub in hubs]
    may = [removable[hub.ids][once] for hub, once in zip(hubs, places, strict=True)]
    left = [
        size_left(mask, align, -(-min_alive * len(mask) // max(len(hub), 1)), removal)
        for hub, mask in zip(hubs, may, strict=True)
    ]
    for group in uniform:
        widest = max(left[k] for k in group)  # all are of one size now, so each has as many
        for k in group:
            left[k] = widest
    gone = torch.zeros_like(removable)
    for hub, once, mask, size in zip(hubs, places, may, left, strict=True):
        gone[hub.ids[once[choose(mask, size, removal, generator)]]] = True
    return gone


def size_left(leave: torch.Tensor, align: int, min_alive: int, removal: float) -> int:
    """How many stay of features of which those in the mask ``leave`` may go."""
    total = len(leave)
    wanted = math.ceil(int(leave.sum()) * removal)
    left = max(total - wanted, min_alive, 1)  # a hub never becomes empty: torch mishandles zero channels
    return min(-(-left // align) * align, total)


def choose(leave: torch.Tensor, left: int, removal: float, generator: torch.Generator | None) -> torch.Tensor:
    """Those that go, so that ``left`` stay. Only a random share is drawn."""
    total, dead = len(leave), int(leave.sum())
    if total - left >= dead:
        return leave
    candidates = torch.nonzero(leave).flatten()
    if removal < 1.0:
        candidates = candidates[torch.randperm(dead, generator=generator)]
    chosen = torch.zeros_like(leave)
    # without a random share the last ones leave, so that the padding stays at the front of the dead
    chosen[candidates[dead - (total - left) :]] = True
    return chosen
