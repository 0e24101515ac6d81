"""Filters for an existing model: each where a dead feature would be removable, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from .adopted import Adopted, adopted_class, can_be_adopted
from .coverage import all_dead
from .depth.branches import find_branches
from .depth.gated import Gated
from .errors import ShrinkError, warn
from .filters import leave_fast_paths, named_filters
from .folded import Init
from .graph.coverage import Coverage, coverage_of
from .graph.network import Network
from .graph.places import Candidate, Place, candidates, find_places, recurrent_candidates
from .graph.reading import read
from .graph.trace import Inputs, checked_inputs
from .graph.written_out import Norm
from .nn import (
    Filter,
    FilterBase,
    FilteredBatchNorm1d,
    FilteredBatchNorm2d,
    FilteredBatchNorm3d,
    FilteredConv1d,
    FilteredConv2d,
    FilteredConv3d,
    FilteredLinear,
    FilteredSyncBatchNorm,
    checked_init,
)
from .norms import (
    FilteredGroupNorm,
    FilteredInstanceNorm1d,
    FilteredInstanceNorm2d,
    FilteredInstanceNorm3d,
    FilteredLayerNorm,
    FilteredRMSNorm,
)
from .recurrent import FilteredGRU, FilteredLSTM
from .saving import check_saves
from .wrapped import unwrapped
from .written_out import written_out_class

__all__ = ["add_filters"]

Model = TypeVar("Model", bound=nn.Module)

FILTERED: dict[type[nn.Module], type[FilterBase]] = {
    kind.plain: kind
    for kind in (
        FilteredLinear,
        FilteredConv1d,
        FilteredConv2d,
        FilteredConv3d,
        FilteredBatchNorm1d,
        FilteredBatchNorm2d,
        FilteredBatchNorm3d,
        FilteredSyncBatchNorm,
        FilteredLayerNorm,
        FilteredRMSNorm,
        FilteredGroupNorm,
        FilteredInstanceNorm1d,
        FilteredInstanceNorm2d,
        FilteredInstanceNorm3d,
        FilteredLSTM,
        FilteredGRU,
    )
}


def add_filters(
    model: Model,
    example_inputs: Inputs,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    exclude: Iterable[str] = (),
    init: Init = 1.0,
    residual: Literal["inner", "tied"] = "inner",
    depth: bool = False,
) -> Model:
    """Give an existing model its filters, in place, and return it. With ``init=1.0`` its output does not change.

    A filter goes to the first place after a layer where a dead feature would be zero for every reader: on the layer itself, on
    the batch norm after it (before one, the norm would scale the filter away), or behind an activation with f(0) != 0, as
    ``nn.Sequential(activation, Filter)``. Layers whose features cannot leave (the output's, say) get none. Parameters and
    modules keep their identity.

    residual: "inner" filters what lies inside the branches of residual networks; "tied" also their trunks, with one theta
    shared by all modules that write to a trunk, so that it can shrink. depth: put a gate, one theta for the whole tensor, behind
    every residual branch (``Gated``); a collection takes the branch of a dead gate out of the network.

    exclude: dotted names of modules that get no filter, nor anything inside them.

    Warns, with the first reasons, where no filter was placed or less than half of the parameters can shrink; see
    :func:`coverage`.
    """
    checked_init("add_filters", init)
    if residual not in ("inner", "tied"):
        raise ShrinkError(f"add_filters: residual is {residual!r}, expected 'inner' or 'tied'")
    unwrapped(model)  # raises where it is no module
    if isinstance(model, nn.parallel.DistributedDataParallel):
        what = "model is a DistributedDataParallel, which averages nothing that is added to it"
        raise ShrinkError(f"add_filters: {what}; add the filters first, then wrap")
    modules = dict(model.named_modules())
    for name in exclude:
        if name not in modules:
            raise ShrinkError(f"add_filters: exclude names {name!r}, which is no module of {type(model).__name__}")
    args, kwargs = checked_inputs(model, example_inputs, example_kwargs)
    network, _, _ = read(model, args, kwargs, {})
    allowed = {n: m for n, m in modules.items() if not any(n == e or n.startswith(f"{e}.") for e in exclude)}
    layers = {name: m for name, m in allowed.items() if type(m) in FILTERED and is_real(m)}
    layers |= {name: allowed[name] for name in network.norms if name in allowed}
    adoptable = {name: module for name, module in allowed.items() if name not in layers and can_be_adopted(module)}
    others = [name for name, module in allowed.items() if moves_zero(module)]
    found = [*candidates(network, layers | adoptable, adoptable, others), *recurrent_candidates(network, layers)]
    places = find_places(network, found, filtered_features(model, network), tied=residual == "tied")
    branches = [b.module for b in find_branches(network) if b.module in allowed] if depth else []
    supposed = {value: dim for place in places for value, dim in place.supposed.items()}
    covered = coverage_of(model, network, all_dead(model), supposed)
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(()))
    for place in places:
        insert(model, modules, place, init, like, network.norms)
    for name in branches:
        module = modules[name]
        replace(model, module, Gated(module, Filter(1, init=init, device=like.device, dtype=like.dtype)))
    leave_fast_paths(model)
    check_saves(model)
    warn_of_the_rest(model, covered)
    return model


def warn_of_the_rest(model: nn.Module, covered: Coverage) -> None:
    """A model that hardly shrinks should be no surprise after the training."""
    if covered.share >= 0.5:
        return
    name = type(model).__name__
    share = (
        f"{covered.share:.0%} of the parameters of {name} can shrink"
        if named_filters(model)
        else f"{name} got no filter"
    )
    reasons = "; ".join(covered.first_reasons())
    warn(f"add_filters: {share}. What keeps the rest: {reasons}. See shrinknets_fast.coverage")


def filtered_features(model: nn.Module, network: Network) -> torch.Tensor:
    """Mask over features: those that have a filter already."""
    covered = torch.zeros(network.features.count, dtype=torch.bool)
    for module in named_filters(model).values():
        bound = network.bound.get(id(module.theta))
        if bound is not None and bound.value.axes[0] is not None:
            covered[bound.value.axes[0].ids] = True
    return covered


def is_real(module: nn.Module) -> bool:
    return all(p.is_floating_point() for p in module.parameters())


def moves_zero(module: nn.Module) -> bool:
    """One of torch.nn's activations with f(0) != 0, to put a filter behind."""
    if not type(module).__module__.startswith("torch.nn.modules.activation") or list(module.parameters()):
        return False
    if isinstance(module, nn.MultiheadAttention):
        return False
    with torch.no_grad():  # its forward alone: the user's hooks are for the user's data
        try:
            return bool((module.forward(torch.zeros(2, 2, 2, 2)) != 0).any())
        except Exception:  # one that takes no such shape
            return False


def filtered_class(plain: Any, candidate: Candidate, norm: Norm | None) -> Any:
    if norm is not None:
        return written_out_class(plain, norm)
    return FILTERED.get(plain) or adopted_class(plain, Adopted, weight_dim=candidate.weight_dim)


def insert(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    place: Place,
    init: Init,
    like: torch.Tensor,
    norms: Mapping[str, Norm],
) -> None:
    """Give the modules of one place their filter; where there are several they share its theta."""
    theta: nn.Parameter | None = None
    for candidate in place.candidates:
        module: Any = modules[candidate.module]  # of another class afterwards
        parameter = next(module.parameters(), like)
        factory: dict[str, Any] = {"device": parameter.device, "dtype": parameter.dtype}
        if list(module.parameters(recurse=False)):
            module.__class__ = filtered_class(type(module), candidate, norms.get(candidate.module))
            module.activation = None  # the object stays: hooks and references to it stay valid
            module.attach_theta(place.size, init, theta, **factory)
            layer = module
        else:
            layer = Filter(place.size, dim=candidate.dim, init=init, theta=theta, **factory)
            replace(model, module, nn.Sequential(module, layer).train(module.training))
        if place.neighbours * place.blocks > 1:
            layer.neighbours, layer.blocks = place.neighbours, place.blocks
        theta = layer.theta


def replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put ``new`` wherever ``old`` is registered in ``model``."""
    for parent in list(model.modules()):
        if parent is new:
            continue
        for key, child in list(parent.named_children()):
            if child is old:
                setattr(parent, key, new)
