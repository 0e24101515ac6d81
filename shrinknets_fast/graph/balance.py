"""Grouped layers: equally many features leave each group, at whatever positions.

A grouped convolution's weight is (rows, columns of one group, ...): column j is another feature in the rows of every group. Such
columns are *slots*: as many leave as features leave each group, and which of its entries a row keeps depends on its group.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .order import kept_positions

if TYPE_CHECKING:
    from .features import Axis, FeatureSpace
    from .network import Network


@dataclass(frozen=True)
class Balance:
    """``axis``: features in ``blocks`` equal blocks side by side; ``label``: the op that needs equally many of each.

    slots, rows: axes of a weight whose columns are the features of one block, another one for each block of its rows.
    """

    axis: Axis
    blocks: int
    label: str
    slots: Axis | None = None
    rows: Axis | None = None

    @property
    def ids(self) -> torch.Tensor:
        """(blocks, features of one)"""
        return self.axis.ids.view(self.blocks, -1)


def settle_balances(network: Network) -> None:
    """Those that cannot be kept by count are by position: the j-th features of all blocks become one."""
    features = network.features
    while features.balances:
        found = once(features.balances)
        by_position = broken(network, found)
        features.balances = [balance for k, balance in enumerate(found) if k not in by_position]
        if not by_position and not meet(features, found):
            return
        for k in by_position:
            ids = found[k].ids
            features.unify_ids(ids[:1].expand_as(ids).flatten(), ids.flatten())
            slots = found[k].slots
            if slots is not None:
                features.unify_ids(ids[0], slots.ids)
        features.settle()


def once(balances: Iterable[Balance]) -> list[Balance]:
    """Each is read in both modes."""
    known: dict[object, Balance] = {}
    for balance in balances:
        slots = balance.slots and balance.slots.ids.numpy().tobytes()
        key = balance.axis.ids.numpy().tobytes(), balance.blocks, slots
        known.setdefault(key, balance)
    return list(known.values())


def meet(features: FeatureSpace, balances: Iterable[Balance]) -> bool:
    """One weight in two calls reads the same features in both. Returns whether that was news."""
    first: dict[int, Balance] = {}
    news = False
    for balance in balances:
        if balance.slots is not None:
            other = first.setdefault(int(balance.slots.ids[0]), balance)
            if not torch.equal(other.axis.ids, balance.axis.ids):
                features.unify_ids(other.axis.ids, balance.axis.ids)
                news = True
    return news


def broken(network: Network, balances: Sequence[Balance]) -> set[int]:
    """The places of those that counts cannot keep: blocks of several hubs or of parts of one, crosswise blocks, columns that
    something else than the weight's own rows has.
    """
    kinds = network.memberships()
    sizes = torch.bincount(kinds)
    found = set(out_of_place(network, balances))
    owner: dict[int, list[Balance]] = {}
    for k, balance in enumerate(balances):
        ids = balance.axis.ids
        alike = bool((kinds[ids] == kinds[ids[0]]).all()) and int(sizes[kinds[ids[0]]]) == len(ids)
        if not alike or len(ids.unique()) < len(ids):
            found.add(k)
        elif k not in found:
            together = owner.setdefault(int(kinds[ids[0]]), [])
            together.append(balance)
            if cells(ids, together) is None:
                together.pop()
                found.add(k)
    return found


def out_of_place(network: Network, balances: Sequence[Balance]) -> Iterable[int]:
    """Those whose slots stand elsewhere than in order along dimension 1 of tensors with the weight's rows along dimension 0."""
    features = network.features
    owner = torch.full((features.count,), -1, dtype=torch.int64)
    for k, balance in enumerate(balances):
        if balance.slots is not None and bool((owner[balance.slots.ids] < 0).any()):  # else a second call's
            owner[balance.slots.ids] = k
    watched = {id(axis) for axis, _ in (*features.pins, *features.doubts)}
    for axis in features.axes:
        owners = owner[axis.ids]
        if not bool((owners >= 0).any()):
            continue
        slots = balances[int(owners.max())].slots
        assert slots is not None  # it owns some
        repeat = len(axis) // len(slots)
        if id(axis) in watched or not repeat or not torch.equal(axis.ids, slots.ids.repeat_interleave(repeat)):
            yield from owners[owners >= 0].unique().tolist()
    for bound in network.bound.values():
        for dim, at in enumerate(bound.value.axes):
            if at is None or not bool((owner[at.ids] >= 0).any()):
                continue
            balance, first = balances[int(owner[at.ids].max())], bound.value.axes[0]
            rows = balance.rows
            assert balance.slots is not None and rows is not None
            if dim != 1 or len(at) != len(balance.slots) or first is None or not torch.equal(first.ids, rows.ids):
                yield int(owner[at.ids].max())


def cells(ids: torch.Tensor, balances: Sequence[Balance]) -> torch.Tensor | None:
    """(cells, features of one): positions in ``ids``, each cell in one block of every balance. None if cells differ in size."""
    label = torch.zeros(len(ids), dtype=torch.int64)
    place = torch.argsort(ids)
    for balance in balances:
        at = place[torch.searchsorted(ids[place], balance.ids)]
        label[at] = label[at] * balance.blocks + torch.arange(balance.blocks)[:, None]
    _, counts = torch.unique(label, return_counts=True)
    if bool((counts != counts[0]).any()):
        return None
    return torch.argsort(label, stable=True).view(len(counts), -1)


def with_slots(balances: Iterable[Balance], gone: torch.Tensor) -> torch.Tensor:
    """The mask ``gone`` over features with the slots that leave when these do: the last ones, since any will do."""
    for balance in balances:
        if balance.slots is not None:
            left = int((~gone[balance.ids]).sum(1).max())
            gone[balance.slots.ids[left:]] = True
    return gone


def kept_slots(balance: Balance, gone: torch.Tensor) -> torch.Tensor:
    """The columns that stay: (left,), or (blocks, left) where they are others for each block of rows."""
    table = torch.stack([kept_positions(ids, gone, ()) for ids in balance.ids])
    return table[0] if bool((table == table[0]).all()) else table
