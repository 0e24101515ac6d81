"""What of a model can shrink, in numbers and reasons."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .graph.coverage import Coverage, coverage_of
from .graph.reading import read
from .graph.trace import Inputs, checked_inputs
from .nn import FilterBase
from .wrapped import unwrapped

__all__ = ["Coverage", "all_dead", "coverage"]


def coverage(model: nn.Module, example_inputs: Inputs, *, example_kwargs: Mapping[str, Any] | None = None) -> Coverage:
    """A :class:`Coverage`: for each parameter the share of its entries that its filters let leave, and what keeps the rest.

    Traces the model and changes nothing. ``print`` it for a table.
    """
    model = unwrapped(model)
    args, kwargs = checked_inputs(model, example_inputs, example_kwargs)
    names = {id(m.theta): name for name, m in model.named_modules() if isinstance(m, FilterBase)}
    network, _, _ = read(model, args, kwargs, names)
    return coverage_of(model, network, all_dead(model))


def all_dead(model: nn.Module) -> dict[int, torch.Tensor]:
    """{id(theta): mask} as if every feature of every filter were dead."""
    thetas = [m.theta for m in model.modules() if isinstance(m, FilterBase)]
    return {id(theta): torch.ones(theta.numel(), dtype=torch.bool) for theta in thetas}
