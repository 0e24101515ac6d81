"""What is read from a model once: its features in hubs, its filters, and a stage on which its forward can be tried."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..checks import check_gradients
from ..depth.gated import left_in
from ..errors import ShrinkError, warn
from ..filters import leave_fast_paths, named_filters, thetas
from ..insides import pytree
from ..watch import Watch
from .choice import Limits, leaving
from .hub import Hub, find_hubs
from .limits import check_min_alive, uniform_hubs
from .network import Network
from .origins import Origins
from .plan import Options, Plan, make_plan
from .rehearse import Rehearsal
from .splits import Key, choose, chosen
from .trace import lookup, trace
from .trials import Trials
from .value import Read
from .verdict import judge
from .written_out import norm_of

Example = tuple[tuple[Any, ...], dict[str, Any]]  # args, kwargs
_examples: weakref.WeakKeyDictionary[nn.Module, Example] = weakref.WeakKeyDictionary()  # fake tensors


def example_of(model: nn.Module) -> Example | None:
    """Example inputs (args, kwargs) of zeros, as the last collector for ``model`` was given them, or None."""
    example = _examples.get(model)
    return pytree.tree_map_only(torch.Tensor, lambda t: torch.zeros(t.shape, dtype=t.dtype, device=t.device), example)


class Reading:
    """``network``: every op and its features; ``hubs``: the features that leave together; ``filters``: {id(theta): (name,
    theta)}; ``watch``: what is dead; ``rehearsal``: trials of the forward at other widths.

    A model whose modules change is read anew. copies(name, theta): thetas that must be dead too.
    """

    def __init__(
        self,
        model: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        copies: Callable[[str, torch.Tensor], Iterable[torch.Tensor]] = lambda name, theta: (),
    ) -> None:
        leave_fast_paths(model)
        self.model = model
        self._copies = copies
        self.filters = {id(m.theta): (name, m.theta) for name, m in reversed(named_filters(model).items())}
        self.thetas: list[torch.Tensor] = [theta for _, theta in self.filters.values()]
        self._holders = [(m, m.theta) for m in named_filters(model).values()]
        self.watch = Watch(self.filters, copies)
        names = {key: name for key, (name, _) in self.filters.items()}
        self.network, self.hubs, self.rehearsal = read(model, args, kwargs, names)
        self.rehearsal.set_stage(model)  # now, or the first collection would have to
        _examples[model] = self.rehearsal.inputs
        self.limits: Limits = {}
        self.origins = Origins({name: m.theta for name, m in named_filters(model).items()}, self.hubs)

    def limit(self, align: int, min_alive: int, uniform: Sequence[str], new: bool = True) -> None:
        """Sizes to keep; uniform: patterns; new: whether they may be refused."""
        self._uniform = tuple(uniform)
        names = {name: m.theta for name, m in named_filters(self.model).items()}
        groups = uniform_hubs(self.network, self.hubs, names, uniform, new and not left_in(self.model))
        if new:
            check_min_alive(self.hubs, min_alive)
        self.limits = {"align": align, "min_alive": min_alive, "uniform": groups}

    def anew(self) -> Reading:
        """The same model as it is now."""
        example = example_of(self.model)
        assert example is not None  # see __init__
        reading = Reading(self.model, *example, self._copies)
        if self.limits:
            reading.limit(self.limits["align"], self.limits["min_alive"], self._uniform, new=False)
        reading.origins.follow(self.origins)
        return reading

    def tensors(self) -> list[tuple[str, torch.Tensor]]:
        """(name, tensor) of each parameter and buffer that the graph uses."""
        return [(bound.names[0], bound.tensor) for bound in self.network.bound.values()]

    def leaving(self, dead: Mapping[int, torch.Tensor]) -> torch.Tensor:
        """Mask over features: those that a collection of all that may leave would remove. dead: {id(theta): mask}"""
        return leaving(judge(self.network, dead).removable, self.hubs, **self.limits)

    def plan(
        self,
        dead: Mapping[int, torch.Tensor],
        removal: float = 1.0,
        generator: torch.Generator | None = None,
        forgiven: Callable[[Read], torch.Tensor] | None = None,
    ) -> Plan:
        """What leaves of the features in ``dead``, {id(theta): mask}; see :func:`make_plan`."""
        options: Options = {**self.limits, "removal": removal, "generator": generator}
        return make_plan(self.network, self.hubs, dead, forgiven=forgiven, **options)

    def check_quickly(self, gradients: bool) -> None:
        """For each look. gradients: whether nobody checks them before a step."""
        self.check_filters()
        if gradients:
            check_gradients(self.model.parameters())

    def check_filters(self) -> None:
        """The thetas that are watched are those that the model computes with."""
        for module, theta in self._holders:
            if module._parameters.get("theta") is not theta:
                name = self.filters[id(theta)][0]
                raise ShrinkError(f"{name}.theta was replaced since the model was traced; make a new GarbageCollector")

    def check(self) -> None:
        """The model is the one that was traced, with the sizes that it was left with."""
        self.check_tensors()
        check_gradients(self.model.parameters())

    def check_tensors(self) -> None:
        self.check_filters()
        for bound in self.network.bound.values():
            for name in bound.names:
                if lookup(self.model, name) is not bound.tensor:
                    raise ShrinkError(f"{name} was replaced since the model was traced; make a new GarbageCollector")
            if tuple(bound.tensor.shape) != bound.shape:
                found, expected = tuple(bound.tensor.shape), bound.shape
                raise ShrinkError(
                    f"{bound.names[0]} has shape {found}, expected {expected}; make a new GarbageCollector"
                )

    def stay_dead(self, dead: Mapping[int, torch.Tensor], plan: Plan) -> dict[int, int]:
        """{id(theta): number of its dead features that the plan leaves in place}"""
        counts = {}
        for key, mask in dead.items():
            bound = self.network.bound.get(key)
            axis = bound.value.axes[0] if bound else None
            counts[key] = int((mask if axis is None else mask & ~plan.gone[axis.ids]).sum())
        return counts

    def rehearse(self, plan: Plan) -> None:
        """Raise if the model cannot run at the planned widths, or does something else there."""
        self.rehearsal.run(self.model, plan.tensors, plan.widths, self.network.splits.views(plan.gone))

    def keep_what_breaks(self, plan: Plan, error: ShrinkError) -> None:
        """After a rehearsal that failed: the hubs at whose removal the forward breaks stay from now on, with a warning each."""
        shrinking = [hub for hub, planned in zip(self.hubs, plan.hubs, strict=True) if planned.removed]
        leaving = [(hub, hub.ids[plan.gone[hub.ids]]) for hub in shrinking]
        found = [(hub, why) for hub, ids in leaving if (why := self._failure(ids, hub)) is not None]
        if not found:  # only one beside the other breaks it
            together = torch.empty(0, dtype=torch.int64)
            for hub, ids in leaving:
                why = self._failure(torch.cat([together, ids]), hub)
                if why is None:
                    together = torch.cat([together, ids])
                else:
                    found.append((hub, why))
        if not found:
            raise error
        for hub, why in found:
            self.network.features.pin(self.network.features.axis(hub.ids), why)
            warn(f"{hub.name} keeps its {len(hub)} features: {why}")

    def _failure(self, ids: torch.Tensor, hub: Hub) -> str | None:
        left = len(hub) - int(torch.isin(hub.ids, ids).sum())
        return Trials(self.model, self.network, self.rehearsal).failure(ids, f"{hub.name}={left}")

    def shrink(self, plan: Plan) -> None:
        """The tensors have shrunk: so do the features, the hubs and the modules' attributes."""
        self.network.features.remove(plan.gone, plan.fills)
        for bound in self.network.bound.values():
            bound.shape = tuple(bound.tensor.shape)
        for hub, planned in zip(self.hubs, plan.hubs, strict=True):
            hub.ids = hub.ids[planned.kept]
        self.origins.shrink(plan)
        self.rehearsal.sizes.sync(self.model)


def read(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], theta_names: Mapping[int, str]
) -> tuple[Network, list[Hub], Rehearsal]:
    """(network, hubs, rehearsal) with every doubt about the user's code resolved by a trial.

    theta_names: {id(theta): the filter's dotted name}.
    """
    thetas(model)  # raises where one is no parameter
    traced = trace(model, args, kwargs)
    choices = chosen(model)
    rehearsal = Rehearsal(model, args, kwargs)
    norms = {name: norm for name, module in model.named_modules() if (norm := norm_of(module)) is not None}
    while True:
        network = Network(traced, choices, norms)
        if theta_names:
            pin_joined_weights(model, network)
        hubs = find_hubs(network, theta_names)
        if own := network.splits.for_each_feature(
            [b.value.axes[0] for k, b in network.bound.items() if k in theta_names]
        ):
            choose(model, choices := {**choices, **own})
            continue
        others = resolve(Trials(model, network, rehearsal), hubs, could_leave(network, theta_names))
        if not others:
            return network, hubs, rehearsal
        choose(model, choices := {**choices, **others})  # the same views, with other parts that shrink


def resolve(trials: Trials, hubs: Sequence[Hub], free: torch.Tensor) -> dict[Key, int]:
    """Pin what fails, of the features in the mask ``free``. Returns what else to try of the views that split such features."""
    features = trials.network.features
    tried: dict[int, str | None] = {}  # feature -> why the model does not survive its removal, or None
    others: dict[Key, int] = {}
    for axis, _ in features.doubts:
        for hub in hubs:
            ids = hub.ids[torch.isin(hub.ids, axis.ids) & free[hub.ids]]
            if len(ids.unique()) < 2:
                continue
            first, cells = int(ids[0]), hub.ids[hub.cells()]
            inside = torch.isin(cells, ids)
            if first not in tried and bool(inside.any(1).all()):
                one = cells[torch.arange(len(cells)), inside.int().argmax(1)]
                tried[first] = trials.failure(one, "one feature less")
            if (why := tried.get(first)) is not None:
                features.pin(features.axis(ids), why)
                others |= trials.network.splits.others(ids)
    return others


def pin_joined_weights(model: nn.Module, network: Network) -> None:
    """cuDNN has all weights of a plain recurrent layer in one memory, in which none can shrink alone."""
    for name, module in model.named_modules():
        own = list(module.parameters(recurse=False)) if isinstance(module, nn.RNNBase) else []
        if len({p.untyped_storage().data_ptr() for p in own}) < len(own):
            for bound in [network.bound[id(p)] for p in own if id(p) in network.bound]:
                for axis in bound.value.axes:
                    network.features.pin(axis, f"lies in one memory with the other weights of {name}")


def could_leave(network: Network, theta_names: Mapping[int, str]) -> torch.Tensor:
    """Mask over features: those worth a trial. Without filters, as when some are to be added, all that nothing pins."""
    everything = {
        key: torch.ones(b.tensor.numel(), dtype=torch.bool) for key, b in network.bound.items() if key in theta_names
    }
    if everything:
        return judge(network, everything).removable
    free = torch.ones(network.features.count, dtype=torch.bool)
    for axis, _ in network.features.pins:
        free[axis.ids] = False
    return free
