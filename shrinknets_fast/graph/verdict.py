"""What is dead: zeros forward, demand backward."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from .network import Network, idle_ops
from .value import Read, Value


@dataclass(frozen=True)
class Verdict:
    """``removable``: mask over features. ``blame``: per feature the index into ``reasons`` of what keeps it, or -1."""

    removable: torch.Tensor
    blame: torch.Tensor
    reasons: tuple[str, ...]


def judge(
    network: Network,
    dead: Mapping[int, torch.Tensor],
    supposed: Mapping[Value, int] | None = None,
    idle_too: bool = True,
    forgiven: Callable[[Read], torch.Tensor] | None = None,
) -> Verdict:
    """A feature may leave when every reader sees a zero or is idle, and nothing needs it for another reason.

    dead: {id(theta): bool mask}; supposed: see :meth:`Network.zeros`; idle_too: whether what a
    closed gate or a dead layer makes superfluous may leave too; forgiven(read): positions that need no zero there.
    """
    count = network.features.count
    zeros = network.zeros(dead, supposed)
    blame = torch.full((count,), -1, dtype=torch.int64)
    read = torch.zeros(count, dtype=torch.bool)
    reasons: list[str] = []
    for axis, reason in network.features.pins:
        note(blame, axis.ids, len(reasons))
        reasons.append(reason)
    # only a filter without a single live feature leaves ops idle
    idle = (
        idle_ops(network, zeros) if idle_too and any(len(mask) and bool(mask.all()) for mask in dead.values()) else ()
    )
    for entry in network.reads:
        ids = entry.axis.ids
        zero = zeros(entry.value, entry.dim)
        read[ids] = True
        if entry.op not in idle:
            good = torch.zeros(len(ids), dtype=torch.bool) if zero is None else zero
            note(blame, ids[~(good if forgiven is None else good | forgiven(entry))], len(reasons))
        reasons.append(entry.reason or f"is not zero where {entry.op.label} reads it")
    removable = read & (blame < 0)
    for balance in network.features.balances:
        if balance.slots is not None:  # as many as each block can lose
            size, ids = len(balance.slots), balance.slots.ids
            removable[ids] = torch.arange(size) >= size - removable[balance.ids].sum(1).min()
            blame[ids] = blame[balance.ids].amax(0)
    return Verdict(removable, blame, tuple(reasons))


def note(blame: torch.Tensor, ids: torch.Tensor, index: int) -> None:
    """Write down the first reason only."""
    free = ids[blame[ids] < 0]
    blame[free] = index
