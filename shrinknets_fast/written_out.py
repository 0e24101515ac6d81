"""Filters for norms that a module writes out for itself: its class with the statistics of the alive features."""

from __future__ import annotations

from typing import Any

import torch

from . import functional
from .adopted import Adopted, adopted_class
from .graph.written_out import Norm

__all__ = ["WrittenOut", "written_out_class"]


class WrittenOut(Adopted):
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


def written_out_class(plain: Any, norm: Norm) -> Any:
    return adopted_class(plain, WrittenOut, norm=norm, weight_offset=norm.offset)
