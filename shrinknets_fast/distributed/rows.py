"""Tensors that are split by rows over the ranks of a group: rows that stay go to the ranks that will have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..ops.compact import select
from ..sharded import group_of_shards, local_part

Keep = Mapping[int, torch.Tensor]


def bounds(rows: int, ranks: int, rank: int) -> tuple[int, int]:
    """(first, behind the last) of the rows of one rank: as torch.chunk, and nothing for ranks behind the last chunk."""
    chunk = -(-rows // ranks)
    return min(rank * chunk, rows), min((rank + 1) * chunk, rows)


@torch.no_grad()
def take(tensor: torch.Tensor, keep: Keep, device: torch.device) -> torch.Tensor:
    """This rank's part of what stays of ``tensor``. keep: {dimension: positions in their new order}, the same on all ranks.

    Columns leave where they are. Rows migrate: no rank sees more than the rows that it had and the rows that it gets. device:
    on which the group communicates.
    """
    from torch.distributed import get_rank, get_world_size

    part = local_part(tensor)
    group = group_of_shards(tensor)
    first = 0 if group is None else bounds(len(tensor), get_world_size(group), get_rank(group))[0]
    for dim, kept in sorted(keep.items(), reverse=True):  # columns of blocks of rows before the rows
        if dim or group is None:
            part = select(part, dim, kept, len(tensor), first)
    if 0 not in keep or group is None:
        return part.contiguous()
    return migrate(part, len(tensor), keep[0], group, device)


def migrate(part: torch.Tensor, rows: int, kept: torch.Tensor, group: Any, device: torch.device) -> torch.Tensor:
    """part: this rank's of ``rows`` rows; kept: which of all stay, in their new order. All ranks of the group call it."""
    from torch.distributed import all_to_all_single, get_rank, get_world_size

    ranks, me = get_world_size(group), get_rank(group)
    owner = kept // max(-(-rows // ranks), 1)
    heir = torch.arange(len(kept)) // max(-(-len(kept) // ranks), 1)
    mine = kept[owner == me] - bounds(rows, ranks, me)[0]
    sent = torch.bincount(heir[owner == me], minlength=ranks)
    # by destination: two of mine that go to the same rank keep their order
    leaving = part.index_select(0, mine[torch.sort(heir[owner == me], stable=True).indices].to(part.device))
    sources = owner[heir == me]
    arrival = torch.sort(sources, stable=True).indices
    got = leaving.new_empty((len(sources), *part.shape[1:]))
    if not part.shape[1:].numel():
        return got
    received = torch.bincount(sources, minlength=ranks)
    there = bytes_of(got).to(device)
    all_to_all_single(there, bytes_of(leaving).to(device), received.tolist(), sent.tolist(), group=group)
    got.copy_(there.to(part.device).view(part.dtype).view(got.shape))
    new = torch.empty_like(got)
    new[arrival.to(part.device)] = got
    return new


def bytes_of(rows: torch.Tensor) -> torch.Tensor:
    """(rows, bytes of one): every backend moves bytes, not every one all dtypes."""
    return rows.contiguous().view(len(rows), rows.shape[1:].numel()).view(torch.uint8)


@torch.no_grad()
def whole(vectors: Sequence[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """Vectors with the parts of all ranks, on ``device``. One communication for each group and dtype."""
    from torch.distributed import all_gather_into_tensor, get_rank, get_world_size

    found: dict[int, torch.Tensor] = {k: v for k, v in enumerate(vectors) if group_of_shards(v) is None}
    found = {k: local_part(v).to(device) for k, v in found.items()}
    together: dict[Any, list[int]] = {}
    for k, vector in enumerate(vectors):
        if k not in found:
            together.setdefault((group_of_shards(vector), vector.dtype), []).append(k)
    for (group, dtype), places in together.items():
        ranks, me = get_world_size(group), get_rank(group)
        sizes = [bounds(len(vectors[k]), ranks, 0)[1] for k in places]
        own = torch.zeros(sum(sizes), dtype=dtype, device=device)
        for piece, k in zip(own.split(sizes), places, strict=True):
            first, behind = bounds(len(vectors[k]), ranks, me)
            piece[: behind - first] = local_part(vectors[k])
        gathered = own.new_empty(ranks * len(own))
        all_gather_into_tensor(gathered.view(torch.uint8), own.view(torch.uint8), group=group)
        for piece, k in zip(gathered.view(ranks, -1).split(sizes, 1), places, strict=True):
            found[k] = piece.reshape(-1)[: len(vectors[k])]
    return [found[k] for k in range(len(vectors))]
