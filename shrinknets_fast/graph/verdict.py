"""What is dead: zeros forward, demand backward."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Verdict:
    """``removable``: mask over features. ``blame``: per feature the index into ``reasons`` of what keeps it, or -1."""

    removable: torch.Tensor
    blame: torch.Tensor
    reasons: tuple


def judge(network, dead, supposed=None):
    """A feature may leave when it is read, every reader sees a zero, and nothing needs it for another reason.

    dead: {id(theta): bool mask}; supposed: see :meth:`Network.zeros`.
    """
    count = network.features.count
    zeros = network.zeros(dead, supposed)
    blame = torch.full((count,), -1, dtype=torch.int64)
    read = torch.zeros(count, dtype=torch.bool)
    reasons = []
    for axis, reason in network.features.pins:
        note(blame, axis.ids, len(reasons))
        reasons.append(reason)
    for entry in network.reads:
        ids = entry.value.axes[entry.dim].ids
        zero = zeros(entry.value, entry.dim)
        read[ids] = True
        note(blame, ids if zero is None else ids[~zero], len(reasons))
        reasons.append(f"is not zero where {entry.label} reads it")
    return Verdict(read & (blame < 0), blame, tuple(reasons))


def note(blame, ids, index):
    """Write down the first reason only."""
    free = ids[blame[ids] < 0]
    blame[free] = index
