"""Which attributes of the user's modules have to follow when features leave: found by trial."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn

from .features import Axis
from .followed import Followed
from .modules import EVERY_MODULE
from .network import Network


def find_followed(
    model: nn.Module, network: Network, gone: torch.Tensor, works: Callable[[list[Followed]], bool]
) -> list[Followed]:
    """The attributes that have to follow for the forward to run without the features in ``gone``; empty if none help.

    works(followed): whether it runs with these. First all that have the size of an axis that shrinks, then as few of them as do.
    """
    found = list(suspects(model, network, gone))
    if not found or not works(found):
        return []
    for entry in list(found):
        fewer = [other for other in found if other is not entry]
        if len(found) > 1 and works(fewer):
            found = fewer
    return found


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
    for bound in network.bound.values():
        for dim, other in enumerate(bound.value.axes):
            if other is not None and torch.equal(other.ids.unique(), wanted):
                return Followed(path, attribute, bound.names[0], dim, len(axis), len(other))
    return None
