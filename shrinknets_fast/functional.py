"""Filtered layers as pure functions, with the argument names of ``torch.nn.functional``.

``(x W^T + b) * s = x (s W)^T + s b`` with ``s = max(0, theta)``: the filter is folded into the weight, so the heavy part
is the library's own kernel, and what autograd saves is what the plain layer saves plus the folded weight. Under autocast
the fold also does the cast that the plain layer would have needed. Where weights outweigh outputs dispatch.py chooses otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F

from . import reference
from .dispatch import Layer, Path, path_of, truncates
from .errors import ShrinkError
from .folded import Activation
from .folded_tensor import check_unfolded
from .norm_functions import filtered_group_norm, filtered_instance_norm, filtered_layer_norm, filtered_rms_norm
from .ops.conv import conv
from .ops.epilogue import conv_epilogue, epilogue
from .ops.filter import filter
from .ops.fold import fold, folded_linear
from .ops.linear import linear
from .synced import synced_batch_norm

__all__ = [
    "filter",
    "filtered_batch_norm",
    "filtered_conv1d",
    "filtered_conv2d",
    "filtered_conv3d",
    "filtered_group_norm",
    "filtered_instance_norm",
    "filtered_layer_norm",
    "filtered_linear",
    "filtered_rms_norm",
]

Size = int | Sequence[int]  # one number for all dimensions, or one for each
Padding = Size | Literal["same", "valid"]
Window = tuple[Size, Padding, Size, int]  # stride, padding, dilation, groups


def compute_dtype(weight: torch.Tensor, kind: str) -> torch.dtype | None:
    """The dtype in which the folded weight is needed: autocast's where it is on (it leaves float64 alone), else its own."""
    if weight.dtype != torch.float64 and kind != "meta" and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return None


def is_relu(activation: str | None) -> bool:
    """Whether it is "relu", or None (any positively homogeneous one commutes with the filter; these two have names)."""
    if activation in (None, "relu"):
        return activation is not None
    raise ShrinkError(f"activation is {activation!r}, expected None or 'relu'")


def filtered_linear(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    theta: torch.Tensor,
    *,
    activation: Activation | None = None,
    path: Path | None = None,
) -> torch.Tensor:
    """``act((input @ weight.T + bias) * max(0, theta))``.

    input: (*, in), weight: (out, in), bias: (out,) or None, theta: (out,). Returns (*, out).
    path: None lets dispatch.py choose; or "fold", "epilogue", "triton" or "reference".
    """
    check_unfolded(weight, bias)
    kind, relu = input.device.type, is_relu(activation)
    dtype = compute_dtype(weight, kind)
    features, columns = weight.shape
    flips = relu and weight.dtype.itemsize == 2
    wide = theta.dtype == torch.float64 or bias is not None and bias.dtype == torch.float64
    barred = wide or truncates(kind, dtype or input.dtype)
    layer = Layer(math.prod(input.shape[:-1]), columns, features, dtype or input.dtype, flips, barred)
    path = path_of("linear", kind, layer, path)
    if path == "fold":
        output = folded_linear(input, weight, bias, theta, dtype, layer.light)
        return F.relu(output) if relu else output
    input = input.to(layer.dtype)
    if path == "triton":
        return linear(input, weight, bias, theta, relu)
    if path == "reference":
        return reference.linear(input, weight, bias, theta, relu)
    weight, bias = weight.to(input.dtype), None if bias is None else bias.to(input.dtype)
    return epilogue(input, weight, bias, theta, relu)


def filtered_conv1d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    theta: torch.Tensor,
    *,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    groups: int = 1,
    activation: Activation | None = None,
    path: Path | None = None,
) -> torch.Tensor:
    """``act(conv1d(input, weight, bias) * max(0, theta))``.

    input: (B, C, L) or (C, L), weight: (out, C / groups, K), bias: (out,) or None, theta: (out,). Returns
    (B, out, M) or (out, M). padding: numbers, "same" or "valid". path: as for :func:`filtered_linear`.
    """
    return _filtered_conv(1, input, weight, bias, theta, (stride, padding, dilation, groups), activation, path)


def filtered_conv2d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    theta: torch.Tensor,
    *,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    groups: int = 1,
    activation: Activation | None = None,
    path: Path | None = None,
) -> torch.Tensor:
    """As :func:`filtered_conv1d` with input (B, C, H, W) and weight (out, C / groups, K, L)."""
    return _filtered_conv(2, input, weight, bias, theta, (stride, padding, dilation, groups), activation, path)


def filtered_conv3d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    theta: torch.Tensor,
    *,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    groups: int = 1,
    activation: Activation | None = None,
    path: Path | None = None,
) -> torch.Tensor:
    """As :func:`filtered_conv1d` with input (B, C, D, H, W) and weight (out, C / groups, K, L, M)."""
    return _filtered_conv(3, input, weight, bias, theta, (stride, padding, dilation, groups), activation, path)


def _filtered_conv(
    dims: int,
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    theta: torch.Tensor,
    window: Window,
    activation: Activation | None,
    path: Path | None,
) -> torch.Tensor:
    check_unfolded(weight, bias)
    kind, relu = input.device.type, is_relu(activation)
    dtype = compute_dtype(weight, kind)
    path = path_of("conv", kind, conv_layer(input, weight, window[0], dtype, relu), path)
    if path == "fold":
        weight, bias = fold(weight, bias, theta, dtype)
        output = CONVS[dims - 1](input, weight, bias, *window)
        return F.relu(output) if relu else output
    input = input.to(dtype or input.dtype)
    batch = input if input.dim() == dims + 2 else input[None]
    batch, window = in_numbers(batch, weight, window)
    if path == "triton":
        output = conv(batch, weight, bias, theta, *window, relu)
    elif path == "reference":
        output = reference.conv(batch, weight, bias, theta, *window, relu)
    else:
        weight, bias = weight.to(input.dtype), None if bias is None else bias.to(input.dtype)
        output = conv_epilogue(batch, weight, bias, theta, window, relu)
    return output if batch.dim() == input.dim() else output[0]


CONVS: tuple[Callable[..., torch.Tensor], ...] = (F.conv1d, F.conv2d, F.conv3d)


def conv_layer(input: torch.Tensor, weight: torch.Tensor, stride: Size, dtype: torch.dtype | None, relu: bool) -> Layer:
    """The product that a convolution is, its borders aside."""
    dims = weight.dim() - 2
    pixels = math.prod(input.shape[-dims:]) * (input.shape[0] if input.dim() == weight.dim() else 1)
    rows = pixels // math.prod(numbers(stride, dims))
    flips = relu and weight.dtype.itemsize == 2
    return Layer(rows, math.prod(weight.shape[1:]), weight.shape[0], dtype or input.dtype, flips)


def in_numbers(
    input: torch.Tensor, weight: torch.Tensor, window: Window
) -> tuple[torch.Tensor, tuple[list[int], list[int], list[int], int]]:
    """The window with one number per dimension; with "same" the input gets the pixel more that an even kernel wants behind it."""
    stride, padding, dilation, groups = window
    dims = weight.dim() - 2
    stride, dilation = numbers(stride, dims), numbers(dilation, dims)
    if padding == "same":
        if any(s != 1 for s in stride):
            raise ShrinkError(f"filtered_conv{dims}d: padding is 'same' with stride {stride}, expected stride 1")
        spans = [d * (k - 1) for k, d in zip(weight.shape[2:], dilation, strict=True)]
        padding = [span // 2 for span in spans]
        if any(span % 2 for span in spans):
            input = F.pad(input, [n for span in reversed(spans) for n in (0, span % 2)])
    elif padding == "valid":
        padding = 0
    elif isinstance(padding, str):
        raise ShrinkError(f"filtered_conv{dims}d: padding is {padding!r}, expected numbers, 'same' or 'valid'")
    return input, (stride, numbers(padding, dims), dilation, groups)


def numbers(value: Size, dims: int) -> list[int]:
    return [value] * dims if isinstance(value, int) else list(value) * (dims if len(value) == 1 else 1)


def filtered_batch_norm(
    input: torch.Tensor,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    theta: torch.Tensor,
    *,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    group: Any = None,
) -> torch.Tensor:
    """``batch_norm(input) * max(0, theta)`` with the filter inside the affine pair.

    input: (B, C, ...); running_mean, running_var, weight, bias: (C,) or None; theta: (C,). A dead feature comes out as
    exact zeros as long as its input is finite. group: a process group over whose ranks the statistics are, in training.
    """
    check_unfolded(weight, bias)
    weight, bias = fold(torch.ones_like(theta) if weight is None else weight, bias, theta)
    if group is None or not training:
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    return synced_batch_norm(input, running_mean, running_var, weight, bias, momentum, eps, group)
