"""The garbage collector: looks at the filters between steps and removes what is dead, exactly."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NoReturn, TypedDict

import torch

from .checks import check_gradients, checked_count, checked_share, default_align, warn_of_no_effect
from .companions import Companions
from .companions.copies import Follow
from .companions.guard import Guard
from .compiled import Compiled
from .depth.closing import can_close_copies, closed_branches, take_out
from .depth.gated import Gated
from .errors import ShrinkError, warn
from .graph.explain import explain
from .graph.modules import make_persistent
from .graph.plan import Plan
from .graph.reading import Reading, example_of
from .graph.rehearse import Rehearsal
from .graph.trace import Inputs, checked_inputs, lookup
from .memory import trim
from .work import prepare

__all__ = ["Collection", "GarbageCollector"]


PATIENCE = 100  # looks between questions whether features wait for copies in vain


@dataclasses.dataclass(frozen=True)
class Collection:
    """What one collection did: features removed per hub, bytes written, bytes no longer used (state included; see
    :meth:`GarbageCollector.trim`), milliseconds.

    ``branches``: the residual branches that left as a whole.
    """

    removed: dict[str, int]
    bytes_moved: int
    bytes_freed: int
    milliseconds: float
    branches: tuple[str, ...] = ()


class CollectorState(TypedDict):
    """What a collector puts into a checkpoint."""

    steps: int
    generator: torch.Tensor
    seen: dict[str, int]


class GarbageCollector:
    """Removes dead features from ``model`` during training, with gradients and optimizer state.

    model: traced here once, in train and eval mode. example_inputs, example_kwargs: what its forward takes; only shapes,
    dtypes and devices count. optimizers: one or several, or wrappers around them; their state follows, and in them dead stays
    dead. Each is tried here on small tensors.

    align: sizes stay multiples of it where the dead allow (None: 8 for half types on CUDA, else 1). every: steps between
    looks. min_dead: ``step()`` collects once this fraction of a hub is newly dead. removal: the random share of the dead that
    a collection removes; seed: for that choice.

    follow: copies that shrink with the model (EMA copies): modules, dicts by name, or lists in the order of
    ``model.parameters()``. Dicts lose the entries of a branch that leaves; with lists every branch stays. follow_dead: "wait"
    keeps a feature until it is dead in every copy too, "drop" does not.

    Raises ShrinkError, with nothing changed, for what cannot be traced or followed. A hub at whose removal the forward would
    break keeps its features, with a warning.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        example_inputs: Inputs,
        *,
        example_kwargs: Mapping[str, Any] | None = None,
        optimizers: torch.optim.Optimizer | Iterable[torch.optim.Optimizer] = (),
        align: int | None = None,
        every: int = 1,
        min_dead: float = 0.05,
        removal: float = 1.0,
        seed: int | None = None,
        follow: Follow = (),
        follow_dead: Literal["wait", "drop"] = "wait",
    ) -> None:
        self._compiled = Compiled(model)
        self.model = model = self._compiled.module
        self.every = checked_count("every", every)
        self.align = checked_count("align", default_align(model) if align is None else align)
        self.min_dead = checked_share("min_dead", min_dead, smallest_allowed=True)
        self.removal = checked_share("removal", removal, smallest_allowed=False)
        args, kwargs = checked_inputs(model, example_inputs, example_kwargs)
        self._companions = Companions(model, optimizers, follow, follow_dead)
        self.optimizers = tuple(followed.optimizer for followed in self._companions.optimizers)
        self._reading = self._read(args, kwargs)
        warn_of_no_effect(model, self._companions.optimizers)
        self._guard = Guard(self._companions.optimizers, lambda: self._reading.thetas)
        self._generator = torch.Generator()
        if seed is not None:
            self._generator.manual_seed(seed)
        self._steps = 0
        self._kept_branches: set[str] = set()  # closed, but they change the shape of their input, so they stay
        self._seen: dict[int, int] = {}  # id(theta) -> dead features that the last collection left
        self._callbacks: OrderedDict[int, Callable[[str, torch.Tensor], object]] = OrderedDict()

    def plan(self) -> Plan:
        """What a collection would remove now. Changes nothing."""
        self._reading.check()
        dead = self._reading.watch.masks()
        plan = self._plan(dead, self._generator.clone_state())
        return dataclasses.replace(plan, branches=tuple(self._leaving(dead)))

    def collect(self) -> Collection:
        """Remove whatever is dead now (a random share if ``removal`` < 1); returns a :class:`Collection`."""
        start = time.perf_counter()
        self._reading.check()
        dead = self._reading.watch.masks()
        self._seen = {key: int(mask.sum()) for key, mask in dead.items()}  # if it fails, not again at every step
        with contextlib.ExitStack() as undo:  # the branches that left come back if the rest is refused
            branches = self._close_branches(dead, undo)
            if branches:
                dead = self._reading.watch.masks()
            self._reading.watch.forget()
            work = prepare(self._reading, self._companions, lambda: self._plan(dead, self._generator))
            undo.pop_all()
        left = self._reading.stay_dead(dead, work.plan)
        moved, freed = work.commit()
        self._seen = left
        if work.plan:
            self._tell(work.plan)
        return Collection(work.plan.removed, moved, freed, (time.perf_counter() - start) * 1e3, branches)

    def step(self) -> Collection | None:
        """Call after ``optimizer.step()``: collects when due and returns the :class:`Collection`, else None.

        On CUDA nothing waits for the device: what one call asks for, the next one reads, so a collection comes a step later.
        DistributedDataParallel keeps its own record of the gradients: wrap the model anew after each collection, on all ranks
        (equal thetas collect at the same step), before the next forward.

        Raises ShrinkError naming the parameter if a theta is not finite, or if a gradient has a stale shape.
        """
        self._steps += 1
        watch = self._reading.watch
        counts = watch.counts()  # of an earlier look, on CUDA
        if not self._steps % self.every:
            self._reading.check_filters()
            if not self.optimizers:  # theirs are checked before each step
                check_gradients(self.model.parameters())
            watch.look()
            counts = counts or watch.counts()
            if not self._steps % (PATIENCE * self.every):
                self._companions.warn_of_waiting(self._reading.filters, self.min_dead)
        if counts is None:
            return None
        new = {key: (dead - self._seen.get(key, 0), size) for key, (dead, size) in counts.items()}
        if not any(count > 0 and count >= self.min_dead * size for count, size in new.values()):
            return None
        collection = self.collect()
        return collection if collection.removed or collection.branches else None

    def explain(self) -> str:
        """Every hub: who makes it, who reads it, its size, whether it can shrink and, if not, the op to blame."""
        self._reading.check()
        vanished = [name for name, m in self.model.named_modules() if isinstance(m, Gated) and m.vanished]
        lines = [f"{name}: this branch is closed and has left the network" for name in vanished]
        return "\n".join([explain(self._reading.network, self._reading.hubs, self._reading.watch.masks()), *lines])

    def on_removed(self, callback: Callable[[str, torch.Tensor], object]) -> torch.utils.hooks.RemovableHandle:
        """``callback(hub_name, kept)`` after each removal; kept: the positions that stayed. Returns a handle to remove it."""
        handle = torch.utils.hooks.RemovableHandle(self._callbacks)
        self._callbacks[handle.id] = callback
        return handle

    def trim(self, waste: float = 0.1) -> int:
        """Give back what collections left unused: of each tensor whose memory is unused by more than the share ``waste``.

        Such a tensor moves (its ``data_ptr()`` changes), one at a time; one whose memory something else refers to stays. Call it
        before ``torch.save``, which writes whole storages. Returns the bytes given back.
        """
        checked_share("waste", waste, smallest_allowed=True)
        tensors = {}
        for bound in self._reading.network.bound.values():
            for member in self._companions.members(bound.names[0], bound.tensor):
                tensors[id(member.owner)] = member.owner
        return trim(tensors.values(), waste)

    def state_dict(self) -> CollectorState:
        names = {name: key for key, (name, _) in self._reading.filters.items()}
        seen = {name: self._seen[key] for name, key in names.items() if key in self._seen}
        return {"steps": self._steps, "generator": self._generator.get_state(), "seen": seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._generator.set_state(state["generator"].cpu())
        self._steps = int(state["steps"])
        seen = state.get("seen", {})  # states from before it was kept have none
        self._seen = {key: seen[name] for key, (name, _) in self._reading.filters.items() if name in seen}

    def _read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Reading:
        return Reading(self.model, args, kwargs, self._companions.thetas)

    def _plan(self, dead: Mapping[int, torch.Tensor], generator: torch.Generator) -> Plan:
        return self._reading.plan(dead, align=self.align, removal=self.removal, generator=generator)

    def _leaving(self, dead: Mapping[int, torch.Tensor]) -> dict[str, Gated]:
        """{name: Gated} of the closed branches, without those that have to stay."""
        closed = closed_branches(self.model, dead)
        copies = self._companions.copies
        return {n: m for n, m in closed.items() if n not in self._kept_branches and can_close_copies(copies, n)}

    def _close_branches(self, dead: Mapping[int, torch.Tensor], undo: contextlib.ExitStack) -> tuple[str, ...]:
        """Take out the residual branches whose gate is dead, here and in the copies; the network that is left is read anew."""
        branches = self._leaving(dead)
        if not branches:
            return ()
        example = example_of(self.model)
        assert example is not None  # self._reading has left it
        args, kwargs = example
        shapes = Rehearsal(self.model, args, kwargs).output_shapes(self.model)

        def still_runs() -> bool:
            return Rehearsal(self.model, args, kwargs).output_shapes(self.model) == shapes

        undo.callback(setattr, self, "_reading", self._reading)
        gone = take_out(self.model, branches, self._companions, still_runs, undo)
        self._kept_branches.update(set(branches) - set(gone))
        if gone:
            self._reading = self._read(args, kwargs)
        return gone

    def _tell(self, plan: Plan) -> None:
        """Whoever has to know that the model has shrunk."""
        # a buffer that checkpoints leave out is in them from its first loss on: its maker makes it whole
        for t in plan.tensors:
            for name in self._reading.network.bound[id(t.tensor)].names:
                for model in (self.model, *self._companions.copies.modules):
                    if lookup(model, name) is not None:
                        make_persistent(model, name)
        for name in plan.padded:
            warn(f"{name}: all its features are dead; one stays as padding")
        self._compiled.reset()
        for callback in list(self._callbacks.values()):
            for hub in plan.hubs:
                if hub.removed:
                    callback(hub.name, hub.kept)

    def __deepcopy__(self, memo: dict[int, Any]) -> NoCollector:
        """A copy of the model that holds its collector has none: this one works on the original."""
        return NoCollector()

    def __reduce__(self) -> tuple[type[NoCollector], tuple[()]]:
        return NoCollector, ()


class NoCollector:
    """In place of a collector where a model that holds one was copied or loaded."""

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("_"):
            raise AttributeError(name)
        raise ShrinkError(f"{name}: this came with a copy of a model; make a new GarbageCollector for it")
