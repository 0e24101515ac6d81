"""Filters for norms that a module writes out for itself: its class with the statistics of the alive features."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

from . import functional
from .folded import FoldedReads
from .graph.written_out import Norm
from .nn import FilterBase

__all__ = ["written_out_class"]


class WrittenOut(FilterBase, FoldedReads):
    """``norm``: what the module computes."""

    norm: Norm

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        norm = self.norm
        weight, bias, theta = self.raw_parameters(input)
        weight = weight + norm.offset if norm.offset else weight
        x, shape = input.movedim(norm.dim, -1), (theta.shape[0],)
        if norm.kind == "rms_norm":
            y = functional.filtered_rms_norm(x, shape, weight, theta, eps=norm.eps)
        else:
            y = functional.filtered_layer_norm(x, shape, weight, bias, theta, eps=norm.eps)
        return y.movedim(-1, norm.dim)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return rebuilt, (self.plain, self.norm), self.__dict__


@functools.cache
def written_out_class(plain: Any, norm: Norm) -> type[FilterBase]:
    kind: Any = type(f"Filtered{plain.__name__}", (WrittenOut, plain), {"plain": plain, "norm": norm})
    kind.__module__, kind.__doc__ = plain.__module__, plain.__doc__
    return kind


def rebuilt(plain: Any, norm: Norm) -> nn.Module:
    kind = written_out_class(plain, norm)
    return kind.__new__(kind)
