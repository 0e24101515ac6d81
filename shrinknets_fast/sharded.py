"""Parameters of which each rank holds a part."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

import torch


def is_sharded(tensor: Any) -> bool:
    sharding = sys.modules.get("torch.distributed.tensor")  # 0.7 s to import, and not in every build
    return sharding is not None and isinstance(tensor, sharding.DTensor)


def asked_by_torch() -> bool:
    """Whether torch.distributed called the caller: fully_shard swaps parameters and reads them as attributes."""
    return sys._getframe(2).f_globals.get("__name__", "").startswith("torch.distributed.")


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """What this rank has of it, in the same memory: all of a tensor that is not sharded."""
    if not is_sharded(tensor):
        return tensor
    sharded: Any = tensor
    return sharded.to_local()


def group_of_shards(tensor: Any) -> Any:
    """The process group over whose ranks it is split, or None where this rank has all of it."""
    if not is_sharded(tensor):
        return None
    split = [dim for dim, placement in enumerate(tensor.placements) if placement.is_shard()]
    return tensor.device_mesh.get_group(split[0]) if split else None


class SumOverRanks(torch.autograd.Function):
    """``sum_r x_r`` over the ranks of a group, on each of them; the gradient of each part is the sum's."""

    @staticmethod
    def forward(x: torch.Tensor, group: Any) -> torch.Tensor:
        total = x.clone()
        torch.distributed.all_reduce(total, group=group)
        return total

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient, None


def sum_over_ranks(terms: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor | None:
    """The sum of scalars or vectors, each of which was computed of :func:`local_part` of a tensor: (term, tensor). One reduction
    for each process group, on all of its ranks. None for no terms."""
    totals: dict[Any, torch.Tensor] = {}
    for term, tensor in terms:
        group = group_of_shards(tensor)
        totals[group] = totals[group] + term.to(totals[group].device) if group in totals else term
    whole = totals.pop(None, None)
    for group, total in totals.items():
        reduced = SumOverRanks.apply(total, group)
        whole = reduced if whole is None else whole + reduced.to(whole.device)
    return whole


@torch.no_grad()
def alive_counts(thetas: Sequence[torch.Tensor]) -> list[int]:
    """How many entries of each are above zero, or NaN, over all ranks; under fully_shard all of them ask."""
    terms = []
    for k, theta in enumerate(thetas):
        row = torch.zeros(len(thetas), dtype=torch.int64, device=local_part(theta).device)
        row[k] = (~(local_part(theta) <= 0)).sum()
        terms.append((row, theta))
    counts = sum_over_ranks(terms)
    return [] if counts is None else counts.tolist()
