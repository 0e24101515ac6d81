"""Of the features that may leave their hubs, those that do: how many stay for the sizes' sake, and which."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypedDict

import torch

from .balance import with_slots
from .hub import Hub


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
    places = [hub.cells() for hub in hubs]
    may = [removable[hub.ids][cells] for hub, cells in zip(hubs, places, strict=True)]
    left = [
        size_left(
            int(masks.sum(1).min()), masks.shape[1], align, -(-min_alive * masks.shape[1] // max(len(hub), 1)), removal
        )
        for hub, masks in zip(hubs, may, strict=True)
    ]
    for group in uniform:
        widest = max(left[k] for k in group)  # all are of one size now, so each has as many
        for k in group:
            left[k] = widest
    gone = torch.zeros_like(removable)
    for hub, cells, masks, size in zip(hubs, places, may, left, strict=True):
        for cell, mask in zip(cells, masks, strict=True):
            gone[hub.ids[cell[choose(mask, size, removal, generator)]]] = True
    return with_slots([balance for hub in hubs for balance in hub.balances], gone)


def size_left(may: int, total: int, align: int, min_alive: int, removal: float) -> int:
    """How many stay of ``total`` features of which ``may`` could go."""
    wanted = math.ceil(may * removal)
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
