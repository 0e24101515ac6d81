"""Hubs: features that the same tensors share, so that they are made, read and removed together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .balance import Balance, cells
from .order import find_movable

if TYPE_CHECKING:
    from .features import Axis
    from .network import Network


@dataclass
class Hub:
    """``ids``: the features still there, in the order of their theta (of their maker where no filter sees them).

    ``movable``: their order may change; see order.py. ``balances``: blocks of them that stay equal.
    """

    name: str
    ids: torch.Tensor
    filtered: bool
    makers: tuple[str, ...]
    readers: tuple[str, ...]
    movable: bool = False
    balances: tuple[Balance, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def cells(self) -> torch.Tensor:
        """(cells, features of one): positions of ``ids``. Equally many leave each cell; but for grouped layers there is one."""
        found = cells(self.ids, self.balances) if self.balances else first_positions(self.ids)[None]
        assert found is not None  # see settle_balances
        return found


def find_hubs(network: Network, theta_names: Mapping[int, str]) -> list[Hub]:
    """All hubs of a settled network. theta_names: {id(theta): the filter's dotted name}."""
    features = network.features
    owners = []  # (name, axis, rank: 0 for a theta, 1 for who makes the features, 2 for who reads them)
    for key, bound in network.bound.items():
        for dim, axis in enumerate(bound.value.axes):
            if axis is not None:
                module = bound.names[0].rpartition(".")[0] or "model"
                rank = 0 if key in theta_names else min(dim, 1) + 1
                owners.append((theta_names.get(key, module), axis, rank))
    kinds = network.memberships()
    for balance in features.balances:
        if balance.slots is not None:
            kinds[balance.slots.ids] = 0  # they leave with features, and are none
    members = [torch.nonzero(kinds == k).flatten() for k in kinds.unique().tolist() if k]
    members.sort(key=lambda ids: int(ids[0]))
    taken: dict[str, int] = {}
    hubs = [one_hub(network, owners, ids, taken) for ids in members]
    hubs = [hub for hub in hubs if len(hub) > 1 or hub.filtered]  # a lone feature cannot leave anyway
    for hub in hubs:
        hub.balances = tuple(b for b in features.balances if bool(torch.isin(b.axis.ids[0], hub.ids)))
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
