"""What a filtered norm is folded into where dead features stay: torch's own norms, of the alive features alone.

A plain norm over all features would count the dead ones. They stay where a feature's neighbours keep it: groups of unequal
size, a size that is a multiple of ``align``, the model's own output.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .norms import FilteredGroupNorm, FilteredLayerNorm, FilteredRMSNorm
from .ops.fold import fold

COUNTING = (FilteredLayerNorm, FilteredRMSNorm, FilteredGroupNorm)


class _Parts(nn.Module):
    """Each norm on its own features, all others zero. Traced into a torch.fx module, which needs nothing of this package.

    Its annotations are objects: before 2.14, torch.fx cannot pickle a module whose annotations are strings.
    """

    def __init__(self, norms: list[nn.Module], features: list[torch.Tensor], dim: int) -> None:
        super().__init__()
        self.norms, self.dim = nn.ModuleList(norms), dim
        for i, places in enumerate(features):
            self.register_buffer(f"features{i}", places)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        output = torch.zeros_like(input)
        for i, norm in enumerate(self.norms):
            places = getattr(self, f"features{i}")
            part = norm(input.index_select(self.dim, places))
            output = output.to(part.dtype).index_copy(self.dim, places, part)
        return output


def of_parts(norm: Any) -> nn.Module:
    """The plain twin of a norm with dead features: a :class:`_Parts`, a part for each group."""
    theta = norm.repeated_theta.detach()
    bare, lives = torch.ones_like(theta), ~(theta <= 0)
    weight, bias = fold(bare if norm.raw("weight") is None else norm.raw("weight"), norm.raw("bias"), theta)
    in_groups = isinstance(norm, FilteredGroupNorm)
    groups = torch.arange(theta.numel(), device=theta.device).view(norm.num_groups if in_groups else 1, -1)
    alive = [group[lives[group]] for group in groups]
    alive = [places for places in alive if len(places)]
    parts = []
    for places in alive:
        shape: Any = (1, len(places)) if in_groups else (len(places),)
        part: Any = norm.plain(*shape, eps=norm.eps)
        part.weight = nn.Parameter(weight[places])
        if "bias" in part._parameters:
            part.bias = nn.Parameter(torch.zeros_like(part.weight) if bias is None else bias[places])
        parts.append(part)
    return torch.fx.symbolic_trace(_Parts(parts, alive, 1 if in_groups else -1)).train(norm.training)
