"""Features that something else has zeroed, a pruning tool say, become dead thetas, so that they can leave."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .errors import ShrinkError
from .filters import HOW, named_filters
from .graph.op import Op
from .graph.reading import read
from .graph.rules.zeros import both
from .graph.trace import Inputs, checked_inputs
from .graph.value import Zeros
from .wrapped import unwrapped

__all__ = ["mark_dead"]

ops = torch.ops.shrinknets_fast


@torch.no_grad()
def mark_dead(
    model: nn.Module, example_inputs: Inputs, *, example_kwargs: Mapping[str, Any] | None = None
) -> dict[str, int]:
    """Set ``theta = 0`` where a filter can only see zeros, whatever the input is; returns {filter's name: features marked}.

    That is where a layer's row and bias are exactly zero, its own or through a mask (``torch.nn.utils.prune``), a batch norm's
    weight and bias, and what follows from them through ops that keep zeros. The model's output does not change; its gradients at
    those features become zero. A shared theta is marked where all its layers are zero. Raises ShrinkError without filters.
    """
    model = unwrapped(model)
    filters = {id(m.theta): (name, m.theta) for name, m in reversed(named_filters(model).items())}
    if not filters:
        raise ShrinkError(f"mark_dead: {type(model).__name__} has no filters; {HOW}")
    args, kwargs = checked_inputs(model, example_inputs, example_kwargs)
    network, _, _ = read(model, args, kwargs, {key: name for key, (name, _) in filters.items()})
    zeros = network.zeros({}, held=True)
    found: dict[int, torch.Tensor] = {}
    counting: set[int] = set()
    for op in network.ops:
        if op.target in (ops.fold.default, ops.filter.default):
            key = id(op["theta"].tensor)
            mask = zero_at(op, zeros)
            found[key] = mask if key not in found else found[key] & mask
        elif op.target in (ops.layer_norm.default, ops.group_norm.default):  # its statistics count what is zero
            counting.add(id(op["theta"].tensor))
    marked = {}
    for key, mask in found.items():
        if key in counting:
            continue
        name, theta = filters[key]
        new = mask.to(theta.device) & (theta > 0)
        theta.masked_fill_(new, 0)
        if bool(new.any()):
            marked[name] = int(new.sum())
    return marked


def zero_at(op: Op, zeros: Zeros) -> torch.Tensor:
    """Where the filter's output is zero before theta has its say."""
    size = op["theta"].shape[0]
    if op.target is ops.fold.default:
        weight, bias = op.results
        known = zeros(weight, 0) if op["bias"] is None else both(zeros(weight, 0), zeros(bias, 0))
    else:
        x = op["x"]
        known = zeros(x, op["dim"] % x.ndim) if x.ndim and x.shape[op["dim"]] == size else None
    return torch.zeros(size, dtype=torch.bool) if known is None else known
