"""How large the network is that a collection would leave: exactly, without collecting."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..depth.gated import Gated, gated_in
from ..dispatch import folding
from ..filters import named_filters
from ..nn import FilterBase
from .blame import quiet
from .draws import same_draws
from .modules import copied
from .plan import tensor_plans
from .reading import Reading
from .rehearse import Rehearsal
from .trace import mode_of

Dead = Mapping[int, torch.Tensor]  # {id(theta): mask}


def closed_branches(model: nn.Module, dead: Dead) -> dict[str, Gated]:
    """{name: Gated} of the branches whose gate is dead, which leave as a whole."""
    return {name: m for name, m in gated_in(model).items() if bool(dead[id(m.gate.theta)].all())}


def staying(model: nn.Module, dead: Dead) -> Iterator[tuple[str, nn.Module]]:
    """The modules that are not inside a closed branch."""
    inside = tuple(f"{name}.0" for name in closed_branches(model, dead))
    for name, module in model.named_modules(remove_duplicate=False):
        if not any(name == prefix or name.startswith(f"{prefix}.") for prefix in inside):
            yield name, module


def features_left(reading: Reading, dead: Dead) -> int:
    """Live features, those of a shared theta once; where a whole layer is dead, live ones before it leave too."""
    gone = reading.leaving(dead)
    modules = {id(m.theta): m for _, m in staying(reading.model, dead) if isinstance(m, FilterBase)}
    return sum(int((stays(reading, m, gone) & ~dead[key]).sum()) for key, m in modules.items())


def parameters_left(reading: Reading, dead: Dead) -> int:
    """Entries of the parameters that the folded network would have, so without thetas."""
    gone = reading.leaving(dead)
    lengths: dict[int, int] = {}
    total, seen = 0, set(dead)
    for _, module in staying(reading.model, dead):
        for p in module._parameters.values():
            if p is None or id(p) in seen:
                continue
            seen.add(id(p))
            bound = reading.network.bound.get(id(p))
            shape = list(p.shape)
            for dim, axis in enumerate(bound.value.axes if bound else ()):
                if axis is not None:
                    if id(axis) not in lengths:
                        lengths[id(axis)] = len(axis) - int(gone[axis.ids].sum())
                    shape[dim] = lengths[id(axis)]
            total += math.prod(shape)
    return total + sum(affine_vectors(m) * int(stays(reading, m, gone).sum()) for m in bare_norms(reading.model))


def bare_norms(model: nn.Module) -> list[FilterBase]:
    """Norms without weight and bias: they get both when they are folded, an RMS norm its weight."""
    return [m for m in named_filters(model).values() if m._parameters.get("weight", m) is None]


def affine_vectors(norm: FilterBase) -> int:
    return 1 + ("bias" in norm._parameters)


def stays(reading: Reading, module: FilterBase, gone: torch.Tensor) -> torch.Tensor:
    """Mask over the features of a filter."""
    bound = reading.network.bound.get(id(module.theta))
    axis = bound.value.axes[0] if bound else None
    return torch.ones(module.theta.numel(), dtype=torch.bool) if axis is None else ~gone[axis.ids]


class Flops:
    """FLOPs of the forward of the folded network in evaluation mode, as ``torch.utils.flop_counter`` counts: products and
    convolutions, 2 for each multiplication and addition."""

    def __init__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._rehearsal = Rehearsal(model, args, kwargs)
        self._known: dict[object, int] = {}

    def __call__(self, reading: Reading, dead: Dead) -> int:
        closed = closed_branches(reading.model, dead)
        plans = list(tensor_plans(reading.network, reading.leaving(dead)))
        shapes = {id(t.tensor): t.shape for t in plans}
        key = (tuple(tuple(shapes.get(id(p), p.shape)) for p in reading.model.parameters()), tuple(closed))
        if key not in self._known:
            if len(self._known) > 1000:
                self._known.clear()
            self._known[key] = self._count(reading.model, shapes, closed)
        return self._known[key]

    def _count(self, model: nn.Module, shapes: Mapping[int, tuple[int, ...]], closed: Mapping[str, Gated]) -> int:
        stage = self._rehearsal.stage
        with stage:
            twins = self._rehearsal.twins(model, shapes)
        shadow = copied(model, twins)
        self._rehearsal.sizes.sync(shadow)
        self._rehearsal.sizes.watch(shadow)
        for name in closed:
            branch = shadow.get_submodule(name)
            assert isinstance(branch, Gated)
            branch.put_stand_in(ExitStack())
        counter = FlopCounterMode(display=False)
        with same_draws(), torch.no_grad(), folding(), quiet(), mode_of(shadow, False), stage, counter:
            shadow(*stage.args, **stage.kwargs)
        return counter.get_total_flops()
