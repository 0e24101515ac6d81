"""The garbage collector: looks at the filters between steps and removes what is dead, exactly."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch

from .checks import checked_count, checked_share, default_align, warn_of_no_effect
from .collection import Collection, CollectorState, NoCollector
from .companions import Companions
from .companions.copies import Follow
from .companions.guard import Guard
from .compiled import Compiled
from .depth.closing import Closing
from .depth.gated import left_in
from .distributed import Around, Facts, facts_about
from .errors import ShrinkError, warn
from .graph.explain import explain
from .graph.limits import checked_patterns
from .graph.plan import Plan
from .graph.reading import Reading
from .graph.trace import Inputs, checked_inputs
from .insides import never_compiled
from .interrupts import uninterrupted
from .latest import note_collector
from .memory import trim
from .pace import Pace, rung
from .sharded import is_sharded
from .work import prepare

__all__ = ["Collection", "GarbageCollector"]

GRAPHS = 6  # of a compiled model: dynamo keeps 8


class GarbageCollector:
    """Removes dead features from ``model`` during training, with gradients and optimizer state.

    model: traced here once, in train and eval mode; or torch's wrapper around it, as DistributedDataParallel, which stays valid.
    Then all ranks make the same calls, and all raise ShrinkError where they would not remove the same. example_inputs,
    example_kwargs: what its forward takes; only shapes, dtypes and devices count. optimizers: one or several, or wrappers around
    them; their state follows, and in them dead stays dead. Each is tried here on small tensors.

    align: sizes stay multiples of it where the dead allow (None: 8 for half types on CUDA, else 1). every: steps between
    looks. min_dead: ``step()`` collects once this fraction of a hub is newly dead. removal: the random share of the dead that
    a collection removes; seed: for that choice. max_graphs: each size of a compiled model costs a graph, so ``step()`` waits
    for so large a share of all features that 95% of them leave within this many graphs (None: 6 where the model is compiled,
    else it does not wait). What is dead by the end of the training leaves by ``collect()``.

    min_alive: no hub becomes smaller than this, gates excepted. uniform: patterns (fnmatch) of names as in
    ``sn.features(model)``; the filters that one matches keep one size, that of the widest need. As with align, what is dead
    beyond these sizes stays as padding, which is exact; :func:`fold_filters` has the same options.

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
        max_graphs: int | None = None,
        follow: Follow = (),
        follow_dead: Literal["wait", "drop"] = "wait",
        min_alive: int = 1,
        uniform: str | Iterable[str] = (),
    ) -> None:
        given = model
        self._around = Around(model, lambda: self._reading.watch, self._facts)
        self.model = model = self._around.module
        self.every = checked_count("every", every)
        self.align = checked_count("align", default_align(model) if align is None else align)
        self.min_dead = checked_share("min_dead", min_dead, smallest_allowed=True)
        self.removal = checked_share("removal", removal, smallest_allowed=False)
        self.max_graphs = None if max_graphs is None else checked_count("max_graphs", max_graphs, least=2)
        self.min_alive = checked_count("min_alive", min_alive)
        self.uniform = checked_patterns(uniform)
        args, kwargs = checked_inputs(self._around.whole, example_inputs, example_kwargs)
        self._companions = Companions(model, optimizers, follow, follow_dead)
        self.optimizers = tuple(followed.optimizer for followed in self._companions.optimizers)
        self._reading = self._around.reading(args, kwargs, self._companions)
        self._reading.limit(self.align, self.min_alive, self.uniform)
        self._closing = Closing(model, self._companions, is_sharded=self._around.sharding is not None)
        warn_of_no_effect(model, self._companions.optimizers)
        self._guard = Guard(self._companions.optimizers, lambda: self._reading.thetas)
        self._generator = torch.Generator()
        if seed is not None:
            self._generator.manual_seed(seed)
        self._compiled = Compiled(given, self._companions.optimizers)
        self._pace = Pace()
        self._callbacks: OrderedDict[int, Callable[[str, torch.Tensor], object]] = OrderedDict()
        note_collector(model, self)

    @property
    def reading(self) -> Reading:
        """The network as it is known to the collector; for :class:`Budget`."""
        return self._reading

    def plan(self) -> Plan:
        """What a collection would remove now. Changes nothing."""
        return self._planned()

    @never_compiled
    def _planned(self) -> Plan:
        self._reading.check()
        dead = self._reading.watch.masks()
        plan = self._plan(dead, self._generator.clone_state())
        return dataclasses.replace(plan, branches=tuple(self._closing.due(dead)))

    def collect(self) -> Collection:
        """Remove whatever is dead now (a random share if ``removal`` < 1); returns a :class:`Collection`."""
        return self._collected()

    @never_compiled
    def _collected(self) -> Collection:
        start = time.perf_counter()
        ranks = self._around.ranks(search=True)
        with contextlib.ExitStack() as undo:  # the branches that left come back if the rest is refused
            ranks.keep(undo, self.state_dict, self.load_state_dict)
            with ranks.agree() as say:
                self._around.wrappers.check()
                self._reading.check()
                dead = self._reading.watch.masks()
                self._pace.seen = {key: int(mask.sum()) for key, mask in dead.items()}  # if it fails, not again at once
                branches = self._closing.close(dead, undo)
                if branches:
                    undo.callback(setattr, self, "_reading", self._reading)
                    self._reading = self._reading.anew()
                    dead = self._reading.watch.masks()
                self._reading.watch.forget()
                work = prepare(
                    self._reading, self._companions, lambda: self._plan(dead, self._generator), self._around.work
                )
                say(work.plan, branches)
            undo.pop_all()
        left = self._reading.stay_dead(dead, work.plan)
        with uninterrupted():
            moved, freed = work.commit()
            graphs = None
            if work.plan or branches:
                self._around.wrappers.rebuild()
                graphs = self._compiled.changed()
        self._pace.seen = left
        if graphs:
            warn(graphs)
        if work.plan:
            self._tell(work.plan)
        return Collection(work.plan.removed, moved, freed, (time.perf_counter() - start) * 1e3, branches)

    def step(self) -> Collection | None:
        """Call after ``optimizer.step()``: collects when due and returns the :class:`Collection`, else None.

        On CUDA nothing waits for the device: what one call asks for, the next one reads, so a collection comes a step later.
        Under DistributedDataParallel all ranks call it, and a look compares their thetas.

        Raises ShrinkError naming the parameter if a theta is not finite, if a gradient has a stale shape, or, on all ranks, if
        a theta is not the same on all of them.
        """
        return self._stepped()

    @never_compiled
    def _stepped(self) -> Collection | None:
        self._pace.steps += 1
        ranks = self._around.ranks()
        counts = ranks.counts()  # of an earlier look, on CUDA
        if self._pace.is_look(self.every) or ranks.unsettled:
            ranks.look(self._pace.steps, lambda: self._reading.check_quickly(gradients=not self.optimizers))
            counts = counts or ranks.counts()
            if self._pace.is_long(self.every):
                self._companions.warn_of_waiting(self._reading.filters, self.min_dead)
        if counts is None or not self._pace.is_enough(counts, self.min_dead):
            return None
        graphs = self.max_graphs or (GRAPHS if self._compiled.is_known() else None)
        if graphs and not self._pace.is_share(counts, rung(graphs)):
            return None
        collection = self.collect()
        return collection if collection.removed or collection.branches else None

    def explain(self) -> str:
        """Every hub: who makes it, who reads it, its size, whether it can shrink and, if not, the op to blame."""
        self._reading.check()
        left = [f"{name}: this branch is closed and has left the network" for name in left_in(self.model)]
        return "\n".join([explain(self._reading.network, self._reading.hubs, self._reading.watch.masks()), *left])

    def on_removed(self, callback: Callable[[str, torch.Tensor], object]) -> torch.utils.hooks.RemovableHandle:
        """``callback(hub_name, kept)`` after each removal; kept: the positions that stayed. Returns a handle to remove it."""
        handle = torch.utils.hooks.RemovableHandle(self._callbacks)
        self._callbacks[handle.id] = callback
        return handle

    def kept(self, name: str) -> torch.Tensor:
        """The positions that the features now left of a filter (or hub) had when this collector was made, in their present order.

        name: as in ``sn.features(model)`` or ``explain()``. A checkpoint of the collector holds them.
        """
        return self._reading.origins[name]

    def trim(self, waste: float = 0.1) -> int:
        """Give back what collections left unused: of each tensor whose memory is unused by more than the share ``waste``.

        Such a tensor moves (its ``data_ptr()`` changes), one at a time; one whose memory something else refers to stays. Call it
        before ``torch.save``, which writes whole storages. Returns the bytes given back.
        """
        checked_share("waste", waste, smallest_allowed=True)
        bound = [(name, tensor) for name, tensor in self._reading.tensors() if not is_sharded(tensor)]  # parts are new
        owners = [member.owner for name, tensor in bound for member in self._companions.members(name, tensor)]
        return trim({id(owner): owner for owner in owners}.values(), waste)

    def state_dict(self) -> CollectorState:
        seen = self._pace.seen_by_name(self._reading.filters)
        kept = dict(self._reading.origins.at)
        return {"steps": self._pace.steps, "generator": self._generator.get_state(), "seen": seen, "kept": kept}

    def reread(self) -> None:
        """After something else gave the model other sizes, as loading a checkpoint does: read it as it is now.

        Raises ShrinkError under fully_shard, where a new collector is needed.
        """
        if self._around.sharding is not None:
            raise ShrinkError("reread: fully_shard has sharded the model; make a new GarbageCollector")
        self._reading = self._reading.anew()
        self._around.unsettle()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._reading.origins.load(state.get("kept", {}))  # older states have none
        self._generator.set_state(state["generator"].cpu())
        self._pace.steps = int(state["steps"])
        self._pace.set_seen_by_name(self._reading.filters, state.get("seen", {}))
        self._around.unsettle()

    def _facts(self) -> Facts:
        """What has to be the same on all ranks, beside thetas."""
        names = ("every", "align", "min_dead", "removal", "max_graphs", "min_alive", "uniform")
        options = {name: getattr(self, name) for name in names}
        return facts_about(self._reading.network, {**options, **self.state_dict()})

    def _plan(self, dead: Mapping[int, torch.Tensor], generator: torch.Generator) -> Plan:
        return self._reading.plan(dead, removal=self.removal, generator=generator)

    def _tell(self, plan: Plan) -> None:
        """Whoever has to know that the model has shrunk."""
        sizes = {hub.name: len(hub.kept) for hub in plan.hubs}
        for name in plan.padded:
            stay = "one stays" if sizes[name] == 1 else f"{sizes[name]} stay"
            warn(f"{name}: all its features are dead; {stay} as padding")
        for callback in list(self._callbacks.values()):
            for hub in plan.hubs:
                if hub.removed:
                    callback(hub.name, hub.kept)

    def __deepcopy__(self, memo: dict[int, Any]) -> NoCollector:
        """A copy of the model that holds its collector has none: this one works on the original."""
        return NoCollector()

    def __reduce__(self) -> tuple[type[NoCollector], tuple[()]]:
        return NoCollector, ()
