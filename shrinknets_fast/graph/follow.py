"""Which attributes of the user's modules have to follow when features leave: found by trial."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn

from .features import Axis
from .followed import Followed
from .modules import EVERY_MODULE
from .network import Network

DONE = 1 << 62  # the forward ran to its end
Kind = tuple[type, str, str, int]


class Search:
    """What had to follow in one layer is tried first in the next."""

    def __init__(self, model: nn.Module, network: Network) -> None:
        self.model, self.network = model, network
        self.kinds: set[Kind] = set()

    def __call__(self, gone: torch.Tensor, progress: Callable[[list[Followed]], int]) -> list[Followed]:
        """The attributes that have to follow for the forward to run without the features in ``gone``; empty if none help.

        progress(followed): how far it runs with these. One attribute more each time, the one that helps most.
        """
        left = list(suspects(self.model, self.network, gone))
        known = [entry for entry in left if self.kind(entry) in self.kinds]
        if known and progress(known) == DONE:
            return known
        found: list[Followed] = []
        reached = progress(found)
        while left:
            steps = {entry: progress([*found, entry]) for entry in left}
            best = max(left, key=lambda entry: steps[entry])
            if steps[best] <= reached:
                return []
            found, reached = [*found, best], steps[best]
            if reached == DONE:
                self.kinds |= {self.kind(entry) for entry in found}
                return found
            left.remove(best)
        return []

    def kind(self, entry: Followed) -> Kind:
        relative = entry.name.removeprefix(f"{entry.path}.") if entry.path else entry.name
        relative = relative if relative != entry.name else entry.name.rpartition(".")[2]
        return type(self.model.get_submodule(entry.path)), entry.attribute, relative, entry.dim


def suspects(model: nn.Module, network: Network, gone: torch.Tensor) -> Iterator[Followed]:
    """Integers, of the modules whose forward meets these features, that are the size of one of their axes."""
    axes: dict[int, Axis] = {}
    paths = {}
    for op in network.ops:
        met = [axis for value in (*op.inputs, *op.results) for axis in value.axes if axis is not None]
        shrinking = [axis for axis in met if bool(gone[axis.ids].any())]
        axes.update((len(axis), axis) for axis in shrinking)
        if shrinking:
            paths.update(dict.fromkeys(path.partition("@")[0] for path in op.modules))
    for path in paths:
        module = model.get_submodule(path)
        if type(module).__module__.startswith("torch.nn."):
            continue
        for attribute, size in vars(module).items():
            if attribute not in EVERY_MODULE and type(size) is int and size in axes:
                entry = measured(network, path, attribute, axes[size])
                if entry is not None:
                    yield entry


def measured(network: Network, path: str, attribute: str, axis: Axis) -> Followed | None:
    """By a tensor whose dimension has the axis' features, each as often as the others."""
    wanted = axis.ids.unique()
    bounds = sorted(
        network.bound.values(), key=lambda bound: not bound.names[0].startswith(f"{path}.")
    )  # its own first
    for bound in bounds:
        for dim, other in enumerate(bound.value.axes):
            if other is not None and torch.equal(other.ids.unique(), wanted):
                return Followed(path, attribute, bound.names[0], dim, len(axis), len(other))
    return None
