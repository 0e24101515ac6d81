"""aliveness: which features of which filters are dead, for all filters of a device in one launch.

``dead[k] = 1`` where every theta of a group has ``theta[k] <= 0``, else 0. A group is a filter's theta and those of its copies.
thetas: vectors (float64, float32, float16 or bfloat16); group: their groups, ascending from 0. Returns bytes on their device: for
each group two int64, how many features are dead and how many thetas are not finite, then the masks of all groups, a byte each.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from .checks import check_theta

_aliveness = torch.ops.shrinknets_fast.aliveness


@torch.library.register_fake("shrinknets_fast::aliveness")
def _(thetas: Sequence[torch.Tensor], group: Sequence[int]) -> torch.Tensor:
    torch._check(
        len(thetas) == len(group), lambda: f"aliveness: group has {len(group)} entries, expected {len(thetas)}"
    )
    sizes = []
    for i, (theta, number) in enumerate(zip(thetas, group, strict=True)):
        check_theta("aliveness", f"thetas[{i}]", theta, thetas[0])
        starts = i == 0 or number != group[i - 1]
        expected = 0 if i == 0 else group[i - 1] + starts
        torch._check(
            number == expected,
            partial("aliveness: group holds {} at position {}, expected {}".format, number, i, expected),
        )
        if starts:
            sizes.append(theta.shape[0])
        words = f"aliveness: thetas[{i}] has shape {tuple(theta.shape)}, expected ({sizes[-1]},) as its group"
        torch._check(theta.shape[0] == sizes[-1], partial(str, words))
    return thetas[0].new_empty(16 * len(sizes) + sum(sizes), dtype=torch.uint8)


@torch.no_grad()
def aliveness(groups: Sequence[Sequence[torch.Tensor]]) -> torch.Tensor:
    """groups: lists of thetas, all on one device, at least one."""
    thetas = [theta if theta.is_contiguous() else theta.contiguous() for group in groups for theta in group]
    return _aliveness(thetas, [number for number, group in enumerate(groups) for _ in group])


def counts_in(seen: torch.Tensor, groups: int) -> list[int]:
    """[dead, not finite, dead, ...] of each group in what :func:`aliveness` gave, as numbers."""
    return seen[: 16 * groups].view(torch.int64).tolist()


def masks_in(seen: torch.Tensor, sizes: Sequence[int]) -> tuple[torch.Tensor, ...]:
    """[bool mask of each group] in what :func:`aliveness` gave, as views."""
    return seen[16 * len(sizes) :].view(torch.bool).split(sizes)
