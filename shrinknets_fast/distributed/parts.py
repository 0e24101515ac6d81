"""Another size for what fully_shard has sharded, before its values are loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from . import fsdp
from .rows import bounds


def resharded(model: nn.Module) -> None:
    """Its parameters are those that the optimizer has; nothing to do for a model that is not sharded."""
    fsdp.reshard(model)


def fitting(model: nn.Module) -> Callable[[torch.Tensor, Sequence[int]], None]:
    """``fit(parameter, shape)`` makes a parameter of the model one of this shape, with undefined values and no gradient.

    Raises ShrinkError for models and releases of torch that are not known.
    """
    fsdp.check(model)
    found = {id(p.sharded_param): p for p in fsdp.parameters(model).values()}

    def fit(tensor: torch.Tensor, shape: Sequence[int]) -> None:
        p = found[id(tensor)]
        part = p.sharded_param.to_local()
        first, behind = bounds(shape[0], p.mesh_info.shard_mesh_size, p.mesh_info.shard_mesh_rank)
        fsdp.resize(p, shape, torch.empty((behind - first, *shape[1:]), dtype=part.dtype, device=part.device))
        fsdp.forget_layouts(model)

    return fit
