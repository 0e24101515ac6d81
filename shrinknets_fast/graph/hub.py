"""Hubs: features that the same tensors share, so that they are made, read and removed together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .order import find_movable

if TYPE_CHECKING:
    from .features import Axis
    from .network import Network


@dataclass
class Hub:
    """``ids``: the features still there, in the order of their theta (of their maker where no filter sees them).

    ``movable``: their order may change; see order.py.
    """

    name: str
    ids: torch.Tensor
    filtered: bool
    makers: tuple[str, ...]
    readers: tuple[str, ...]
    movable: bool = False

    def __len__(self) -> int:
        return len(self.ids)


def find_hubs(network: Network, theta_names: Mapping[int, str]) -> list[Hub]:
    """All hubs of a settled network. theta_names: {id(theta): the filter's dotted name}."""
    features = network.features
    signature = torch.zeros(features.count, dtype=torch.int64)
    owners = []  # (name, axis, rank: 0 for a theta, 1 for who makes the features, 2 for who reads them)
    for key, bound in network.bound.items():
        for dim, axis in enumerate(bound.value.axes):
            if axis is not None:
                module = bound.names[0].rpartition(".")[0] or "model"
                rank = 0 if key in theta_names else min(dim, 1) + 1
                owners.append((theta_names.get(key, module), axis, rank))
                signature[axis.ids] = signature[axis.ids] * 1000003 + len(owners)
    kinds, group = torch.unique(signature, return_inverse=True)
    members = [torch.nonzero(group == k).flatten() for k in range(len(kinds)) if int(kinds[k])]
    members.sort(key=lambda ids: int(ids[0]))
    taken: dict[str, int] = {}
    hubs = [one_hub(network, owners, ids, taken) for ids in members]
    hubs = [hub for hub in hubs if len(hub) > 1 or hub.filtered]  # a lone feature cannot leave anyway
    find_movable(features, hubs)
    return hubs


def one_hub(network: Network, owners: Sequence[tuple[str, Axis, int]], ids: torch.Tensor, taken: dict[str, int]) -> Hub:
    inside = torch.zeros(network.features.count, dtype=torch.bool)
    inside[ids] = True
    name, axis, rank = min((o for o in owners if bool(inside[o[1].ids].any())), key=lambda owner: owner[2])
    if rank == 0:
        ids = axis.ids[inside[axis.ids]]
    if rank == 2:
        name = f"{name} input"
    taken[name] = taken.get(name, 0) + 1
    if taken[name] > 1:
        name = f"{name}#{taken[name]}"
    reads = [(read.axis, read.op.label) for read in network.reads]
    return Hub(name, ids, rank == 0, labels(network.makes, inside), labels(reads, inside))


def first_positions(ids: torch.Tensor) -> torch.Tensor:
    """Where each feature stands first. One that leaves several places together, as in a grouped layer, has several."""
    _, inverse = torch.unique(ids, return_inverse=True)
    places = torch.arange(len(ids))
    count = int(inverse.max()) + 1 if len(ids) else 0
    return places.new_full((count,), len(ids)).scatter_reduce(0, inverse, places, "amin").sort().values


def labels(entries: Iterable[tuple[Axis, str]], inside: torch.Tensor) -> tuple[str, ...]:
    """The labels of the entries whose axis holds one of these features, each once, in order."""
    return tuple(dict.fromkeys(label for axis, label in entries if bool(inside[axis.ids].any())))
