"""Norms over features with a filter, as pure functions: they are part of :mod:`shrinknets_fast.functional`.

Layer, RMS and group norm have the statistics of their *alive* features (theta > 0) only, and dead ones come out as exact zeros. So a
dead feature can be removed exactly, and what stays is the plain norm of the smaller size with ``weight * theta``, ``bias * theta``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from .errors import ShrinkError
from .folded_tensor import check_unfolded
from .ops.fold import fold
from .ops.group_norm import group_norm
from .ops.layer_norm import layer_norm
from .reference import widest


def filtered_layer_norm(
    input: torch.Tensor,
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    theta: torch.Tensor,
    *,
    eps: float = 1e-5,
) -> torch.Tensor:
    """``(xhat * weight + bias) * max(0, theta)``, where xhat is ``input`` normalised over the alive features of its last dimension.

    input: (*, C); normalized_shape: (C,); weight, bias: (C,) or None; theta: (C,). Returns (*, C): exact zeros where theta <= 0,
    whatever the input, weight and bias hold there. Without an alive feature all is zero.
    """
    check_unfolded(weight, bias)
    check_shape("filtered_layer_norm", normalized_shape, theta)
    return layer_norm(autocast(input), weight, bias, theta, eps)


def filtered_rms_norm(
    input: torch.Tensor,
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None,
    theta: torch.Tensor,
    *,
    eps: float | None = None,
) -> torch.Tensor:
    """As :func:`filtered_layer_norm` without mean and bias. eps: None is that of the dtype computed in, as torch has it."""
    check_unfolded(weight, None)
    check_shape("filtered_rms_norm", normalized_shape, theta)
    input = autocast(input)
    return layer_norm(input, weight, None, theta, torch.finfo(widest(input)).eps if eps is None else eps, True)


def filtered_group_norm(
    input: torch.Tensor,
    num_groups: int,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    theta: torch.Tensor,
    *,
    eps: float = 1e-5,
) -> torch.Tensor:
    """``group_norm(input) * max(0, theta)`` with the statistics of each group's alive channels.

    input: (B, C, ...); weight, bias: (C,) or None; theta: (C,). A group without an alive channel comes out as zeros.
    """
    check_unfolded(weight, bias)
    return group_norm(autocast(input), weight, bias, theta, num_groups, eps)


def filtered_instance_norm(
    input: torch.Tensor,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    theta: torch.Tensor,
    *,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> torch.Tensor:
    """``instance_norm(input) * max(0, theta)`` with the filter inside the affine pair: each channel is on its own.

    input: (B, C, ...); running_mean, running_var, weight, bias: (C,) or None; theta: (C,). A dead feature comes out as exact zeros
    as long as its input is finite.
    """
    check_unfolded(weight, bias)
    weight, bias = fold(torch.ones_like(theta) if weight is None else weight, bias, theta)
    return F.instance_norm(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)


def check_shape(name: str, normalized_shape: Sequence[int], theta: torch.Tensor) -> None:
    if tuple(normalized_shape) != tuple(theta.shape):
        shapes = f"normalized_shape is {tuple(normalized_shape)}, expected {tuple(theta.shape)} as theta"
        raise ShrinkError(f"{name}: {shapes}")


def autocast(input: torch.Tensor) -> torch.Tensor:
    """On a GPU autocast has norms in float32, on the CPU in the dtype that they are given."""
    return input.float() if input.is_cuda and input.dtype.itemsize == 2 and torch.is_autocast_enabled("cuda") else input
