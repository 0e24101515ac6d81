"""Where a filter does good: the modules after which a dead feature would be zero for every reader."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from .network import Network
from .value import Value
from .verdict import judge

LAYERS = ("aten.linear", "aten.conv", "aten.batch_norm")


@dataclass(frozen=True)
class Place:
    """Modules that get a filter along ``dim`` of their output, with ``size`` features. Several share one theta."""

    modules: tuple[str, ...]
    dim: int
    size: int
    supposed: dict[Value, int]  # {output: dimension} that the filter can make zero


@dataclass(frozen=True)
class Candidate:
    module: str
    dim: int
    outputs: tuple[Value, ...]  # one value per mode

    @property
    def ids(self) -> torch.Tensor:
        axis = self.outputs[0].axes[self.dim]
        assert axis is not None  # else it is no candidate
        return axis.ids


def candidates(
    network: Network, modules: Mapping[str, nn.Module], feature_dim: Callable[[nn.Module, Value], int | None]
) -> Iterator[Candidate]:
    """Modules that are called once, in the order of the forward, with features along one dimension of their output.

    modules: {name: module} to consider; feature_dim(module, output) names the dimension, or None.
    """
    maker = {value: op.name for op in network.ops for value in op.results}
    for name, calls in network.outputs.items():
        if name not in modules:
            continue
        layers = [[value for value in made if maker[value].startswith(LAYERS)] for made in calls]
        calls = [own or made for own, made in zip(layers, calls, strict=True)]  # beside it, hooks may mask its weight
        if any(len(made) != 1 for made in calls):
            continue
        outputs = tuple(made[0] for made in calls)
        if any(value.shape != outputs[0].shape for value in outputs):
            continue
        dim = feature_dim(modules[name], outputs[0])
        if dim is not None and all(value.axes[dim] is not None for value in outputs):
            yield Candidate(name, dim, outputs)


def find_places(network: Network, found: Iterable[Candidate], covered: torch.Tensor, tied: bool) -> list[Place]:
    """The :class:`Place` s for filters among the candidates ``found``.

    covered: mask over features that have a filter already. tied: also where only several modules together can make a feature
    zero, as the writers of a residual trunk: they share one theta.
    """
    places: list[Place] = []
    left: dict[tuple[int, ...], list[Candidate]] = {}
    for candidate in found:
        if bool(covered[candidate.ids].any()):
            continue
        if works(network, [candidate]):
            covered[candidate.ids] = True
            places.append(place_of([candidate]))
        else:
            left.setdefault(tuple(candidate.ids.tolist()), []).append(candidate)
    for writers in left.values() if tied else ():
        if len(writers) < 2 or bool(covered[writers[0].ids].any()) or not works(network, writers):
            continue
        for writer in list(writers):  # a convolution before its batch norm is not needed
            others = [w for w in writers if w is not writer]
            if works(network, others):
                writers = others
        covered[writers[0].ids] = True
        places.append(place_of(writers))
    return places


def place_of(writers: Sequence[Candidate]) -> Place:
    return Place(tuple(w.module for w in writers), writers[0].dim, len(writers[0].ids), supposed_zero(writers))


def supposed_zero(writers: Sequence[Candidate]) -> dict[Value, int]:
    return {value: writer.dim for writer in writers for value in writer.outputs}


def works(network: Network, writers: Sequence[Candidate]) -> bool:
    """Whether every feature could leave if these modules' outputs were zero there."""
    if not writers:
        return False
    return bool(judge(network, {}, supposed_zero(writers)).removable[torch.cat([w.ids for w in writers])].all())
