"""The order of a hub's features when some leave: kept (slide), or holes filled from the end (fill) where that moves far less.

Along a tensor's leading dimension a fill writes as many rows as are dead, a slide all rows behind the first dead one. Where
another dimension shrinks too, or the hub lies along an inner one, every byte moves either way.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from ..ops.compact import fill

if TYPE_CHECKING:
    from .features import FeatureSpace, Fills
    from .hub import Hub
    from .network import Network
    from .plan import TensorPlan

# A fill gives up the order of the features, so it must save a fifth of the bytes that the hub's tensors move, and at least a
# megabyte: below that a collection's fixed cost (tens of microseconds) is all there is to see.
WORTH_SHARE = 0.2
WORTH_BYTES = 1 << 20


def whole(ids: torch.Tensor, hub_ids: torch.Tensor) -> int:
    """How many neighbouring positions each feature has, where the axis is the whole hub in its order; else 0."""
    count = len(ids) // max(len(hub_ids), 1)
    return count if count and torch.equal(ids, hub_ids.repeat_interleave(count)) else 0


def find_movable(features: FeatureSpace, hubs: Sequence[Hub]) -> None:
    """Set ``hub.movable``: each axis with one of its features is the whole hub, and nothing depends on their order."""
    owner = torch.full((features.count,), -1, dtype=torch.int64)
    for number, hub in enumerate(hubs):
        owner[hub.ids] = number
        hub.movable = len(torch.unique(hub.ids)) == len(hub.ids) and not hub.balances
    watched = {id(axis) for axis, _ in (*features.pins, *features.doubts)}
    for axis in features.axes:
        owners = torch.unique(owner[axis.ids]).tolist()
        good = len(owners) == 1 and owners[0] >= 0 and id(axis) not in watched and whole(axis.ids, hubs[owners[0]].ids)
        for number in owners if not good else ():
            if number >= 0:
                hubs[number].movable = False


def kept_positions(ids: torch.Tensor, gone: torch.Tensor, fills: Fills) -> torch.Tensor:
    """The positions of an axis that stay, in their new order. fills: [(hub ids, kept positions of the hub)]."""
    for hub_ids, kept in fills:
        if len(ids) and ids[0] == hub_ids[0]:
            return spread(kept, whole(ids, hub_ids))
    return torch.nonzero(~gone[ids]).flatten()


def spread(kept: torch.Tensor, repeat: int) -> torch.Tensor:
    """A hub's kept features as positions of an axis on which each has ``repeat`` neighbouring ones."""
    return (kept[:, None] * repeat + torch.arange(repeat)).flatten()


def choose_fills(
    network: Network, hubs: Sequence[Hub], gone: torch.Tensor, tensors: Iterable[TensorPlan]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """[(hub ids, kept)] of the hubs worth a fill. tensors: the TensorPlans if all hubs slide."""
    shrinking = defaultdict(list)  # first feature of an axis that shrinks -> [(its ids, dim, TensorPlan)]
    for t in tensors:
        for dim in t.keep:
            axis = network.bound[id(t.tensor)].value.axes[dim]
            assert axis is not None  # it has features that leave
            shrinking[int(axis.ids[0])].append((axis.ids, dim, t))
    chosen: list[tuple[torch.Tensor, torch.Tensor]] = []
    slides: dict[int, int] = {}
    for hub in hubs:
        axes = shrinking[int(hub.ids[0])] if hub.movable and len(hub) else ()
        if not axes or sum(t.tensor.nbytes for _, _, t in axes) < WORTH_BYTES:  # more than all cannot be saved
            continue
        stays = torch.nonzero(~gone[hub.ids]).flatten()
        if len(stays) in (0, len(hub)):
            continue
        kept = fill(stays, len(hub))
        orders: dict[int, torch.Tensor] = {}
        fills: dict[int, int] = {}
        slid = filled = 0
        for ids, dim, t in axes:
            repeat = whole(ids, hub.ids)
            if repeat:
                if repeat not in orders:
                    orders[repeat] = spread(kept, repeat)
                slid += moved_bytes(t.tensor, t.keep, slides)
                filled += moved_bytes(t.tensor, {**t.keep, dim: orders[repeat]}, fills)
        if slid - filled >= max(WORTH_SHARE * slid, WORTH_BYTES):
            chosen.append((hub.ids, kept))
    return chosen


def moved_bytes(tensor: torch.Tensor, keep: Mapping[int, torch.Tensor], known: dict[int, int]) -> int:
    """Bytes that a compaction of ``tensor`` to ``keep`` writes. known: a dict that remembers what was found out about lists."""
    shape = [keep[d].shape[-1] if d in keep else n for d, n in enumerate(tensor.shape)]
    total = math.prod(shape) * tensor.element_size()
    if len(keep) != 1:
        return total if keep else 0
    ((dim, kept),) = keep.items()
    leads = all(n == 1 or tensor.stride(d) < tensor.stride(dim) for d, n in enumerate(tensor.shape) if d != dim)
    if not leads or not total:
        return total
    if id(kept) not in known:
        known[id(kept)] = moved_rows(kept)
    return known[id(kept)] * (total // len(kept))


def moved_rows(kept: torch.Tensor) -> int:
    """How many positions a compaction along the leading dimension writes: a slide from the first hole on, a fill the holes."""
    away = torch.nonzero(kept != torch.arange(len(kept))).flatten()
    slides = len(kept) < 2 or bool((kept[1:] > kept[:-1]).all())
    return len(kept) - int(away[0]) if slides and len(away) else len(away)
