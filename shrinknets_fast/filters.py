"""Questions about all filters of a model: which there are, how many features live, what their penalty is."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from .errors import ShrinkError
from .nn import FilterBase
from .sharded import alive_counts, local_part, sum_over_ranks
from .wrapped import unwrapped

__all__ = ["features", "named_filters", "param_groups", "penalty", "thetas"]


HOW = "add_filters(model, example_inputs) gives it some"
REMOVE = "remove that first (torch.nn.utils.parametrize.remove_parametrizations, torch.nn.utils.prune.remove)"


def named_filters(model: nn.Module) -> dict[str, FilterBase]:
    """{"module.name": module} for every layer with a filter, in the model's order; names are the model's, not its wrapper's."""
    return {name: module for name, module in unwrapped(model).named_modules() if isinstance(module, FilterBase)}


def leave_fast_paths(model: nn.Module) -> None:
    """In evaluation nn.TransformerEncoderLayer hands its layers' weights to one fused op, which knows no theta: not with filters.

    The flags are the ones that torch itself clears where the fused op does not fit.
    """
    for module in model.modules():
        if isinstance(module, (nn.TransformerEncoderLayer, nn.TransformerEncoder)) and named_filters(module):
            if isinstance(module, nn.TransformerEncoderLayer):
                module.activation_relu_or_gelu = 0
            else:
                module.enable_nested_tensor = module.use_nested_tensor = False


def thetas(model: nn.Module) -> dict[str, nn.Parameter]:
    """{"module.name.theta": Parameter}, a shared one once, under its first name. Raises where something else computes it."""
    found: dict[int, tuple[str, nn.Parameter]] = {}
    for name, module in named_filters(model).items():
        if "theta" not in module._parameters:
            what = f"{name or type(module).__name__}.theta is computed by a parametrization or pruning, expected a parameter"
            raise ShrinkError(f"{what}; {REMOVE}")
        found.setdefault(id(module.theta), (f"{name}.theta" if name else "theta", module.theta))
    return dict(found.values())


def penalty(model: nn.Module) -> torch.Tensor:
    """``sum max(0, theta)`` over all filters of ``model``: a scalar tensor; multiply it by lambda yourself.

    A shared theta counts once. The gradient is 1 for a live feature and 0 for a dead one (theta <= 0). Summed in float32 or
    wider. Raises ShrinkError for a model without filters, which a penalty cannot shrink.
    """
    terms = []
    for theta in thetas(model).values():
        own = local_part(theta)
        terms.append((torch.relu(own if own.dtype == torch.float64 else own.float()).sum(), theta))
    total = sum_over_ranks(terms)
    if total is None:
        raise ShrinkError(f"penalty: {type(model).__name__} has no filters; {HOW}")
    return total


def features(model: nn.Module) -> dict[str, tuple[int, int]]:
    """{"module.name": (alive, total)} for every filter of ``model``; total is the layer's present size."""
    filters = named_filters(model)
    alive = alive_counts([module.theta for module in filters.values()])
    return {name: (n, m.theta.numel()) for n, (name, m) in zip(alive, filters.items(), strict=True)}


def param_groups(
    model: nn.Module,
    *,
    lr: float | torch.Tensor,
    filter_lr: float | torch.Tensor | None = None,
    weight_decay: float = 0.0,
) -> list[dict[str, Any]]:
    """Two parameter groups for an optimizer: the weights with ``weight_decay``, and the thetas with ``filter_lr`` and none.

    Decay on theta would fight the penalty; decay on the weights keeps the penalty meaningful, because scale can otherwise
    move from theta into the weights. filter_lr: None means ``lr``.
    """
    filter_lr = lr if filter_lr is None else filter_lr
    for name, value in (("lr", lr), ("filter_lr", filter_lr), ("weight_decay", weight_decay)):
        if not 0 <= float(value) < math.inf:
            raise ShrinkError(f"param_groups: {name} is {value!r}, expected a finite number of at least 0")
    filters = list(thetas(model).values())
    known = {id(theta) for theta in filters}
    weights = [p for p in model.parameters() if id(p) not in known]
    groups = [
        {"params": weights, "lr": lr, "weight_decay": weight_decay},
        {"params": filters, "lr": filter_lr, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
