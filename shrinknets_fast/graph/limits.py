"""What sizes a user asks for, checked against the hubs that there are."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence

import torch

from ..errors import ShrinkError
from .hub import Hub
from .network import Network


def checked_patterns(uniform: str | Iterable[str]) -> tuple[str, ...]:
    patterns = (uniform,) if isinstance(uniform, str) else tuple(uniform)
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise ShrinkError(f"uniform: {pattern!r} is no pattern, expected names of filters as in sn.features(model)")
    return patterns


def check_min_alive(hubs: Iterable[Hub], min_alive: int) -> None:
    for hub in hubs:
        if hub.filtered and 1 < len(hub) < min_alive:  # a gate is open or closed
            raise ShrinkError(f"min_alive is {min_alive}, but {hub.name} has {len(hub)} features")


def uniform_hubs(
    network: Network, hubs: Sequence[Hub], names: Mapping[str, torch.Tensor], patterns: Iterable[str], new: bool = True
) -> list[list[int]]:
    """Groups of hubs, by index, whose sizes stay equal: of the filters, {name: theta}, that one pattern matches.

    Patterns that share a hub make one group. new: whether a pattern has to match; a branch may have left since.
    """
    groups: list[set[int]] = []
    for pattern in patterns:
        matched = {name: theta for name, theta in names.items() if fnmatch.fnmatchcase(name, pattern)}
        if new and not matched:
            raise ShrinkError(f"uniform: {pattern!r} matches no filter, expected some of {', '.join(names) or 'none'}")
        sizes = {name: theta.numel() for name, theta in matched.items()}
        if len(set(sizes.values())) > 1:
            words = ", ".join(f"{name} has {size}" for name, size in sizes.items())
            raise ShrinkError(f"uniform: {pattern!r} matches filters of different sizes: {words}")
        found = {hub_of(network, hubs, name, theta) for name, theta in matched.items()}
        units = {hubs[k].cells().shape[1] for k in found}
        if len(units) > 1:
            raise ShrinkError(f"uniform: {pattern!r} matches filters whose features leave one by one, and in groups")
        touching = [group for group in groups if group & found]
        groups = [group for group in groups if not group & found]
        groups.append(found.union(*touching))
    return [sorted(group) for group in groups if len(group) > 1]


def hub_of(network: Network, hubs: Sequence[Hub], name: str, theta: torch.Tensor) -> int:
    """The index of the hub that is all of a filter's features."""
    bound = network.bound.get(id(theta))
    axis = bound.value.axes[0] if bound is not None else None
    if axis is None:
        raise ShrinkError(f"uniform: {name} is not used by the forward, or its features are not followed")
    owners = [k for k, hub in enumerate(hubs) if bool(torch.isin(axis.ids, hub.ids).any())]
    if len(owners) != 1 or len(hubs[owners[0]]) != len(axis):
        raise ShrinkError(f"uniform: the features of {name} are not one hub but {len(owners)}, whose sizes differ")
    return owners[0]
