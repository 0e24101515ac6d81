"""A plan carried out: everything that moves is found and checked first, then moved. Objects keep their identity."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch

from .checks import check_storages
from .companions import Companions
from .companions.others import note_shrunk
from .companions.state import Member
from .errors import ShrinkError
from .graph.modules import make_persistent
from .graph.order import moved_bytes
from .graph.plan import Plan
from .graph.reading import Reading
from .graph.trace import lookup
from .interrupts import uninterrupted
from .ops.compact import compact_, is_dense

Keep = dict[int, torch.Tensor]
Entry = tuple[str, torch.Tensor, Keep]  # name of the parameter, tensor, what stays of it


class Prepared(Protocol):
    """A plan of which everything that could refuse has been asked."""

    plan: Plan

    def commit(self) -> tuple[int, int]:
        """Carry it out; it cannot be refused now. Returns (bytes written, bytes no longer used)."""


Kind = Callable[[Any, Companions, Plan], Prepared]


def prepare(reading: Reading, companions: Companions, make: Callable[[], Plan], kind: Kind | None = None) -> Prepared:
    """The :class:`Work`, or another ``kind`` of it, of the plan that ``make()`` gives, of which the model has been shown to
    survive it.

    Hubs at whose removal its forward breaks stay from now on. Raises ShrinkError, with nothing changed, for what cannot follow.
    """
    reading.check()
    plan = make()
    while plan:
        try:
            reading.rehearse(plan)
        except ShrinkError as error:
            reading.keep_what_breaks(plan, error)
            plan = make()
        else:
            break
    return (kind or Work)(reading, companions, plan)


class Work:
    """Making it may be refused; :meth:`commit` cannot."""

    def __init__(self, reading: Reading, companions: Companions, plan: Plan) -> None:
        check_storages(reading.model, plan.tensors)
        self.plan, self._reading, self._companions = plan, reading, companions
        self._members: list[Member] = []
        entries: dict[int, Entry] = {}  # by id(tensor)
        for t in plan.tensors:
            for member in companions.members(t.name, t.tensor):
                key = id(member.tensor)
                if entries.get(key, (t.name,))[0] != t.name:
                    raise ShrinkError(f"follow: {entries[key][0]} and {t.name} are one tensor there, expected one each")
                entries[key] = (t.name, member.tensor, member.kept(t.keep, t.name))
                self._members.append(member)
        apart, self._again = without_aliases(entries.values())
        check_apart(apart)
        self._moves = [(tensor, keep) for _, tensor, keep in apart]

    @torch.no_grad()
    def commit(self) -> tuple[int, int]:
        """Compact everything in place. Returns (bytes written, bytes no longer used)."""
        if not self.plan:
            return 0, 0
        known: dict[int, int] = {}
        with uninterrupted():
            used = sum(tensor.nbytes for tensor, _ in self._moves)
            sizes = [(t, tuple(t.shape)) for t, _ in self._moves if isinstance(t, torch.nn.Parameter)]
            moved = sum(moved_bytes(tensor, keep, known) for tensor, keep in self._moves)
            compact_(self._moves)
            for alias, first in self._again:
                alias.set_(first)  # type: ignore[call-overload]  # torch declares no set_ of a tensor alone
            for member in self._members:
                member.put_in_row()
            self._reading.shrink(self.plan)
            for module in self._companions.copies.modules:
                self._reading.rehearsal.sizes.sync(module)
            names = [name for t in self.plan.tensors for name in self._reading.network.bound[id(t.tensor)].names]
            for module in (self._reading.model, *self._companions.copies.modules):
                keep_in_checkpoints(module, names)
        note_shrunk(sizes)
        return moved, used - sum(tensor.nbytes for tensor, _ in self._moves)


def keep_in_checkpoints(module: torch.nn.Module, names: Iterable[str]) -> None:
    """A buffer that checkpoints leave out is in them from its first loss on: its maker would make it whole."""
    for name in names:
        if lookup(module, name) is not None:
            make_persistent(module, name)


def without_aliases(entries: Iterable[Entry]) -> tuple[list[Entry], list[tuple[torch.Tensor, torch.Tensor]]]:
    """Of (name, tensor, keep): those to move, and (alias, tensor) where a copy is followed twice, as in a state_dict too."""
    first: dict[tuple[object, ...], Entry] = {}
    again = []
    for name, tensor, keep in entries:
        place = tensor.data_ptr() or id(tensor)
        key = (name, tensor.device, tensor.dtype, place, tensor.shape, tensor.stride())
        if key in first:
            again.append((tensor, first[key][1]))
        else:
            first[key] = (name, tensor, keep)
    return list(first.values()), again


def check_apart(entries: Iterable[Entry]) -> None:
    """Tensors that lie over each other would be moved twice; those with gaps are moved to memory of their own."""
    dense = [(name, t) for name, t, _ in entries if t.data_ptr() and is_dense(t)]
    dense.sort(key=lambda entry: (str(entry[1].device), entry[1].data_ptr()))
    for (low, below), (high, above) in itertools.pairwise(dense):
        if below.device == above.device and below.data_ptr() + below.nbytes > above.data_ptr():
            raise ShrinkError(f"{low} and {high} share memory, in a copy or a gradient; expected tensors of their own")
