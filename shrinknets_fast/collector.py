"""The garbage collector: looks at the filters between steps and removes what is dead, exactly."""

import contextlib
import dataclasses
import time
import warnings
import weakref
from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch.utils import _pytree as pytree

from .checks import check_gradients, check_storages, checked_count, checked_share, default_align
from .companions.copies import Following
from .companions.guard import Guard
from .companions.optimizers import checked_optimizers
from .companions.trial import try_out
from .errors import ShrinkError
from .filters import leave_fast_paths, named_filters
from .graph.apply import apply_plan, members
from .graph.build import build
from .graph.constants import Constants, forgiven, move_into_biases
from .graph.explain import explain
from .graph.modules import make_persistent
from .graph.plan import make_plan
from .graph.rehearse import Rehearsal
from .graph.trace import checked_inputs, lookup
from .interrupts import uninterrupted
from .memory import trim
from .nn import Gated
from .vanish import closed_branches, vanish
from .watch import Watch

__all__ = ["Collection", "GarbageCollector", "example_of"]

_examples = (
    weakref.WeakKeyDictionary()
)  # model -> (args, kwargs) as fake tensors, so that fold_filters can trace it again


def example_of(model):
    """Example inputs (args, kwargs) of zeros, as the last collector for ``model`` was given them, or None."""
    example = _examples.get(model)
    return pytree.tree_map_only(torch.Tensor, lambda t: torch.zeros(t.shape, dtype=t.dtype, device=t.device), example)


@dataclass(frozen=True)
class Collection:
    """What one collection did: features removed per hub, bytes written, bytes no longer used (state included; see
    :meth:`GarbageCollector.trim`), milliseconds.

    ``branches``: the residual branches that left as a whole.
    """

    removed: dict
    bytes_moved: int
    bytes_freed: int
    milliseconds: float
    branches: tuple = ()


class GarbageCollector:
    """Removes dead features from ``model`` during training, with gradients and optimizer state.

    model: traced here once, in train and eval mode. example_inputs, example_kwargs: what its forward takes; only shapes,
    dtypes and devices count. optimizers: one or several; their state follows, and in them dead stays dead.

    align: sizes stay multiples of it where the dead allow (None: 8 for half types on CUDA, else 1). every: steps between
    looks. min_dead: ``step()`` collects once this fraction of a hub is newly dead. removal: the random share of the dead that
    a collection removes; seed: for that choice.

    follow: copies that shrink with the model (EMA copies): modules, dicts by name, or lists in the order of
    ``model.parameters()``. Dicts lose the entries of a branch that leaves; with lists every branch stays. follow_dead: "wait"
    keeps a feature until it is dead in every copy too, "drop" does not.

    Raises ShrinkError, with nothing changed, for what cannot be traced, followed or run at the smaller size.
    """

    def __init__(
        self,
        model,
        example_inputs,
        *,
        example_kwargs=None,
        optimizers=(),
        align=None,
        every=1,
        min_dead=0.05,
        removal=1.0,
        seed=None,
        follow=(),
        follow_dead="wait",
    ):
        compiled, model = (
            model,
            getattr(model, "_orig_mod", model),
        )  # torch.compile's wrapper: the module itself shrinks
        self._compiled = compiled is not model or any(m._compiled_call_impl is not None for m in model.modules())
        self.model = model
        self._followed = checked_optimizers(optimizers)
        self.optimizers = tuple(followed.optimizer for followed in self._followed)
        self.every = checked_count("every", every)
        self.align = checked_count("align", default_align(model) if align is None else align)
        self.min_dead = checked_share("min_dead", min_dead, smallest_allowed=True)
        self.removal = checked_share("removal", removal, smallest_allowed=False)
        if follow_dead not in ("wait", "drop"):
            raise ShrinkError(f"GarbageCollector: follow_dead is {follow_dead!r}, expected 'wait' or 'drop'")
        self._following = Following(model, follow)
        self._waits = follow_dead == "wait"
        self._generator = torch.Generator()
        if seed is not None:
            self._generator.manual_seed(seed)
        args, kwargs = checked_inputs(model, example_inputs, example_kwargs)
        self._trace(args, kwargs)
        self._steps = 0
        self._kept_branches = set()  # closed, but they change the shape of their input, so they stay
        self._seen = {}  # id(theta) -> dead features that the last collection left
        self._callbacks = OrderedDict()
        for followed in self._followed:
            try_out(followed)
            followed.check()
        self._guard = Guard(self._followed, lambda: [theta for _, theta in self._filters.values()])

    def plan(self):
        """What a collection would remove now. Changes nothing."""
        self._check_model()
        dead = self._watch.masks()
        plan = self._plan(dead, self._generator.clone_state())
        return dataclasses.replace(plan, branches=tuple(self._leaving(dead)))

    def collect(self):
        """Remove whatever is dead now (a random share if ``removal`` < 1); returns a :class:`Collection`."""
        start = time.perf_counter()
        self._check_model()
        dead = self._watch.masks()
        with contextlib.ExitStack() as undo:  # the branches that left come back if the rest is refused
            branches = self._close_branches(dead, undo)
            if branches:
                dead = self._watch.masks()
            plan = self._plan(dead, self._generator)
            moved, freed = self._carry_out(plan, dead, undo.pop_all)
            undo.pop_all()
        return Collection(plan.removed, moved, freed, (time.perf_counter() - start) * 1e3, branches)

    def collect_constants(self):
        """For inference only: also remove dead features that are a constant where they are read, such as sigmoid(0).

        The biases that exist take the constants over, where that is exact (not across zero padding). Returns removed per hub.
        """
        self._check_model()
        dead = self._watch.masks()
        constants = Constants(self._network, dead)
        plan = make_plan(self._network, self._hubs, dead, forgiven=forgiven(self.model, self._network, constants))
        self._carry_out(plan, dead, lambda: move_into_biases(self.model, self._network, constants, plan.gone))
        return plan.removed

    def _stay_dead(self, dead, plan):
        """{id(theta): number of its dead features that the plan leaves in place}"""
        counts = {}
        for key, mask in dead.items():
            bound = self._network.bound.get(key)
            axis = bound.value.axes[0] if bound else None
            counts[key] = int((mask if axis is None else mask & ~plan.gone[axis.ids]).sum())
        return counts

    def _carry_out(self, plan, dead, before=lambda: None):
        moved = freed = 0
        self._watch.forget()
        self._seen = {key: int(mask.sum()) for key, mask in dead.items()}  # if it fails, not again at every step
        if plan:
            left = self._stay_dead(dead, plan)
            check_storages(self.model, plan.tensors)
            self._rehearsal.run(self.model, plan.tensors, plan.widths)
            with uninterrupted():
                moved, freed = apply_plan(
                    plan,
                    self._network,
                    self._hubs,
                    self.model,
                    self._followed,
                    self._following,
                    self._rehearsal.sizes,
                    before,
                )
            self._seen = left
            self._into_checkpoints(plan)
            for name in plan.padded:
                warnings.warn(f"{name}: all its features are dead; one stays as padding", stacklevel=2)
            if self._compiled:
                torch.compiler.reset()  # torch 2.11 does not guard on parameters' sizes: a stale backward would run
            self._tell(plan)
        return moved, freed

    def _into_checkpoints(self, plan):
        """A buffer that checkpoints leave out, because its maker makes it again, is in them from its first loss on."""
        for t in plan.tensors:
            for name in self._network.bound[id(t.tensor)].names:
                for model in (self.model, *self._following.modules):
                    if lookup(model, name) is not None:
                        make_persistent(model, name)

    def step(self):
        """Call after ``optimizer.step()``: collects when due and returns the :class:`Collection`, else None.

        On CUDA nothing waits for the device: what one call asks for, the next one reads, so a collection comes a step later.
        DistributedDataParallel keeps its own record of the gradients: wrap the model anew after each collection, on all ranks
        (equal thetas collect at the same step), before the next forward.

        Raises ShrinkError naming the parameter if a theta is not finite, or if a gradient has a stale shape.
        """
        self._steps += 1
        counts = self._watch.counts()  # of an earlier look, on CUDA
        if not self._steps % self.every:
            if not self.optimizers:  # theirs are checked before each step
                check_gradients(self.model.parameters())
            self._watch.look()
            counts = counts or self._watch.counts()
        if counts is None:
            return None
        new = {key: (dead - self._seen.get(key, 0), size) for key, (dead, size) in counts.items()}
        if not any(count > 0 and count >= self.min_dead * size for count, size in new.values()):
            return None
        collection = self.collect()
        return collection if collection.removed or collection.branches else None

    def explain(self):
        """Every hub: who makes it, who reads it, its size, whether it can shrink and, if not, the op to blame."""
        self._check_model()
        vanished = [name for name, m in self.model.named_modules() if isinstance(m, Gated) and m.vanished]
        lines = [f"{name}: this branch is closed and has left the network" for name in vanished]
        return "\n".join([explain(self._network, self._hubs, self._watch.masks()), *lines])

    def on_removed(self, callback):
        """``callback(hub_name, kept)`` after each removal; kept: the positions that stayed. Returns a handle to remove it."""
        handle = torch.utils.hooks.RemovableHandle(self._callbacks)
        self._callbacks[handle.id] = callback
        return handle

    def trim(self, waste=0.1):
        """Give back what collections left unused: of each tensor whose memory is unused by more than the share ``waste``.

        Such a tensor moves (its ``data_ptr()`` changes), one at a time; one whose memory something else refers to stays. Call it
        before ``torch.save``, which writes whole storages. Returns the bytes given back.
        """
        checked_share("waste", waste, smallest_allowed=True)
        tensors = {}
        for bound in self._network.bound.values():
            for member in members(bound.names[0], bound.tensor, self._followed, self._following):
                tensor = member.tensor if member.row is None else member.row
                tensors[id(tensor)] = tensor
        return trim(tensors.values(), waste)

    def state_dict(self):
        seen = {name: self._seen[key] for key, (name, _) in self._filters.items() if key in self._seen}
        return {"steps": self._steps, "generator": self._generator.get_state(), "seen": seen}

    def load_state_dict(self, state):
        self._generator.set_state(state["generator"].cpu())
        self._steps = int(state["steps"])
        seen = state.get("seen", {})  # states from before it was kept have none
        self._seen = {key: seen[name] for key, (name, _) in self._filters.items() if name in seen}

    def _trace(self, args, kwargs):
        model = self.model
        leave_fast_paths(model)
        self._filters = {id(m.theta): (name, m.theta) for name, m in reversed(named_filters(model).items())}
        self._watch = Watch(self._filters, self._copies)
        names = {key: name for key, (name, _) in self._filters.items()}
        self._network, self._hubs, self._rehearsal = build(model, args, kwargs, names)
        self._rehearsal.set_stage(model)  # now, or the first collection would have to
        _examples[model] = self._rehearsal.inputs

    def _leaving(self, dead):
        """{name: Gated} of the closed branches, without those that have to stay."""
        closed = closed_branches(self.model, dead)
        return {n: m for n, m in closed.items() if n not in self._kept_branches and self._following.can_close(n)}

    def _close_branches(self, dead, undo):
        """Take out the residual branches whose gate is dead, here and in the copies; the network that is left is traced anew."""
        branches = self._leaving(dead)
        if not branches:
            return ()
        args, kwargs = example_of(self.model)
        shapes = Rehearsal(self.model, args, kwargs).output_shapes(self.model)
        traced = ("_filters", "_watch", "_network", "_hubs", "_rehearsal")
        undo.callback(vars(self).update, {name: getattr(self, name) for name in traced})
        undo.callback(setattr, self, "_seen", {key: int(mask.sum()) for key, mask in dead.items()})
        gone = vanish(
            self.model,
            branches,
            self._followed,
            lambda: Rehearsal(self.model, args, kwargs).output_shapes(self.model) == shapes,
            undo,
        )
        self._kept_branches.update(set(branches) - set(gone))
        if gone:
            self._following.close({name: branches[name] for name in gone}, undo)
            self._trace(args, kwargs)
        return gone

    def _copies(self, name, theta):
        """The thetas of the copies that a feature waits for."""
        return self._following.tensors(f"{name}.theta" if name else "theta", theta) if self._waits else ()

    def _plan(self, dead, generator):
        return make_plan(self._network, self._hubs, dead, align=self.align, removal=self.removal, generator=generator)

    def _check_model(self):
        """The model is the one that was traced, with the sizes this collector left it with."""
        for bound in self._network.bound.values():
            for name in bound.names:
                if lookup(self.model, name) is not bound.tensor:
                    raise ShrinkError(f"{name} was replaced since the model was traced; make a new GarbageCollector")
            if tuple(bound.tensor.shape) != bound.shape:
                found, expected = tuple(bound.tensor.shape), bound.shape
                raise ShrinkError(
                    f"{bound.names[0]} has shape {found}, expected {expected}; make a new GarbageCollector"
                )
        check_gradients(self.model.parameters())

    def __deepcopy__(self, memo):
        """Itself: where a model holds its collector, a copy of the model has no other."""
        return self

    def _tell(self, plan):
        for callback in list(self._callbacks.values()):
            for hub in plan.hubs:
                if hub.removed:
                    callback(hub.name, hub.kept)
