"""The plan of one collection: which features leave which hub, and what that makes of every tensor. Changes nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Unpack

import torch

from .balance import kept_slots
from .choice import Limits, leaving
from .features import Fills
from .hub import Hub
from .network import Network
from .order import choose_fills, kept_positions
from .value import Read
from .verdict import judge


@dataclass(frozen=True)
class HubPlan:
    """``kept``: positions that stay, in their new order: ascending, or a permutation where holes are filled (see order.py).

    ``blocked``: why dead features must stay.
    """

    name: str
    total: int
    dead: int
    kept: torch.Tensor
    blocked: str

    @property
    def removed(self) -> int:
        return self.total - len(self.kept)


@dataclass(frozen=True)
class TensorPlan:
    """``keep``: {dimension: the positions that stay, in their new order}. Along dimension 1 a matrix has other positions for each
    of as many blocks of dimension 0; see balance.py.
    """

    name: str
    tensor: torch.Tensor
    keep: dict[int, torch.Tensor]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.keep[d].shape[-1] if d in self.keep else n for d, n in enumerate(self.tensor.shape))


@dataclass(frozen=True)
class Plan:
    """What a collection would remove. ``print(plan)`` is a table; ``bytes_freed`` counts parameters and buffers only.

    ``branches``: the residual branches that leave as a whole, because their gate is dead. ``gone``: mask over features;
    ``fills``: (features, kept) of the hubs whose order changes.
    """

    hubs: tuple[HubPlan, ...]
    tensors: tuple[TensorPlan, ...]
    gone: torch.Tensor
    padded: tuple[str, ...]
    fills: Fills = ()
    branches: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.tensors)

    @property
    def removed(self) -> dict[str, int]:
        """{hub name: number of features that leave}, hubs that lose some only."""
        return {hub.name: hub.removed for hub in self.hubs if hub.removed}

    @property
    def widths(self) -> str:
        """The new sizes in words, for messages."""
        return ", ".join(f"{hub.name}={len(hub.kept)}" for hub in self.hubs if hub.removed)

    @property
    def bytes_freed(self) -> int:
        return sum((t.tensor.numel() - math.prod(t.shape)) * t.tensor.element_size() for t in self.tensors)

    def __str__(self) -> str:
        rows: list[tuple[object, ...]] = [("hub", "features", "dead", "removed", "left", "note")]
        for hub in self.hubs:
            rows.append((hub.name, hub.total, hub.dead, hub.removed, len(hub.kept), hub.blocked))
        widths = [max(len(str(row[i])) for row in rows) for i in range(5)]
        lines = ["  ".join(str(c).ljust(w) for c, w in zip(row, [*widths, 0], strict=True)).rstrip() for row in rows]
        lines += [f"{name}: the branch leaves" for name in self.branches]
        return "\n".join([*lines, f"{len(self.tensors)} tensors change, {self.bytes_freed} bytes are freed"])


class Options(Limits, total=False):
    """Of :func:`make_plan`."""

    removal: float
    generator: torch.Generator | None


def make_plan(
    network: Network,
    hubs: Sequence[Hub],
    dead: Mapping[int, torch.Tensor],
    *,
    forgiven: Callable[[Read], torch.Tensor] | None = None,
    **options: Unpack[Options],
) -> Plan:
    """Decide what leaves. dead: {id(theta): bool mask}; forgiven: see :func:`judge`; options: see :func:`leaving`."""
    verdict = judge(network, dead, forgiven=forgiven)
    died = dead_features(network, dead)
    gone = leaving(verdict.removable, hubs, **options)
    padded, blocked = [], {}
    for hub in hubs:
        leave = verdict.removable[hub.ids]
        if len(hub) and bool((leave & died[hub.ids]).all()):
            padded.append(hub.name)
        stuck = verdict.blame[hub.ids[died[hub.ids] & ~leave]]
        blocked[hub.name] = verdict.reasons[int(stuck[0])] if len(stuck) and int(stuck[0]) >= 0 else ""
        dead_in = leave[hub.cells()].sum(1)
        if not blocked[hub.name] and len(dead_in) and bool((dead_in != dead_in[0]).any()):
            blocked[hub.name] = f"{hub.balances[0].label} has equally many features in each group"
    tensors = tuple(tensor_plans(network, gone))
    fills = tuple(choose_fills(network, hubs, gone, tensors))
    hub_plans = []
    for hub in hubs:
        dead_here = int((died[hub.ids] | verdict.removable[hub.ids]).sum())
        kept = kept_positions(hub.ids, gone, fills)
        hub_plans.append(HubPlan(hub.name, len(hub), dead_here, kept, blocked[hub.name]))
    tensors = tuple(tensor_plans(network, gone, fills)) if fills else tensors
    return Plan(tuple(hub_plans), tensors, gone, tuple(padded), fills)


def dead_features(network: Network, dead: Mapping[int, torch.Tensor]) -> torch.Tensor:
    """Mask over features: dead in some filter."""
    died = torch.zeros(network.features.count, dtype=torch.bool)
    for key, mask in dead.items():
        bound = network.bound.get(key)
        if bound is not None and bound.value.axes[0] is not None:
            died[bound.value.axes[0].ids[mask]] = True
    return died


def tensor_plans(network: Network, gone: torch.Tensor, fills: Fills = ()) -> Iterator[TensorPlan]:
    """Tensors whose axes are alike share their kept positions, so that these are looked at once."""
    known = {}
    slots = {b.slots.ids.numpy().tobytes(): b for b in network.features.balances if b.slots is not None}
    for bound in network.bound.values():
        keep = {}
        for dim, axis in enumerate(bound.value.axes):
            if axis is not None and bool(gone[axis.ids].any()):
                key = axis.ids.numpy().tobytes()
                if key not in known:
                    balance = slots.get(key)
                    known[key] = kept_slots(balance, gone) if balance else kept_positions(axis.ids, gone, fills)
                keep[dim] = known[key]
        if keep:
            yield TensorPlan(bound.names[0], bound.tensor, keep)
