"""Filtered layers as pure functions, with the argument names of ``torch.nn.functional``.

``(x W^T + b) * s = x (s W)^T + s b`` with ``s = max(0, theta)``: the filter is folded into the weight, so the heavy part
is the library's own kernel, and what autograd saves is what the plain layer saves plus the folded weight. Under autocast
the fold also does the cast that the plain layer would have needed.
"""

import torch
import torch.nn.functional as F

from . import reference
from .dispatch import Layer, linear_path
from .errors import ShrinkError
from .ops.epilogue import epilogue
from .ops.filter import filter
from .ops.fold import fold
from .ops.linear import linear

__all__ = [
    "filter",
    "filtered_batch_norm",
    "filtered_conv1d",
    "filtered_conv2d",
    "filtered_conv3d",
    "filtered_linear",
]


def compute_dtype(weight):
    """The dtype in which the folded weight is needed: autocast's where it is on (it leaves float64 alone), else its own."""
    kind = weight.device.type
    if weight.dtype != torch.float64 and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return None


def fold_layer(weight, bias, theta):
    """Folded weight and bias in the dtype that the layer computes in."""
    return fold(weight, bias, theta, compute_dtype(weight))


def activate(output, activation):
    """Apply ``activation``: None or "relu" (any positively homogeneous one commutes with the filter; these two have names)."""
    return F.relu(output) if is_relu(activation) else output


def is_relu(activation):
    if activation in (None, "relu"):
        return activation is not None
    raise ShrinkError(f"activation is {activation!r}, expected None or 'relu'")


def filtered_linear(input, weight, bias, theta, *, activation=None, path=None):
    """``act((input @ weight.T + bias) * max(0, theta))``.

    input: (*, in), weight: (out, in), bias: (out,) or None, theta: (out,). Returns (*, out).
    path: None lets dispatch.py choose; or "fold", "epilogue", "triton" or "reference".
    """
    dtype, relu = compute_dtype(weight), is_relu(activation)
    flips = relu and weight.dtype.itemsize == 2
    layer = Layer(input.shape[:-1].numel(), *weight.shape[::-1], dtype or input.dtype, flips)
    path = linear_path(input.device.type, layer, path)
    if path == "fold":
        weight, bias = fold(weight, bias, theta, dtype)
        return activate(F.linear(input, weight, bias), activation)
    input = input.to(layer.dtype)
    if path == "triton":
        return linear(input, weight, bias, theta, relu)
    if path == "reference":
        return reference.linear(input, weight, bias, theta, relu)
    weight, bias = weight.to(input.dtype), None if bias is None else bias.to(input.dtype)
    return epilogue(input, weight, bias, theta, relu)


def _filtered_conv(conv, input, weight, bias, theta, activation, **options):
    weight, bias = fold_layer(weight, bias, theta)
    return activate(conv(input, weight, bias, **options), activation)


def filtered_conv1d(input, weight, bias, theta, *, stride=1, padding=0, dilation=1, groups=1, activation=None):
    """``act(conv1d(input, weight, bias) * max(0, theta))``; input: (B, C, L), weight: (out, C / groups, K), theta: (out,)."""
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return _filtered_conv(F.conv1d, input, weight, bias, theta, activation, **options)


def filtered_conv2d(input, weight, bias, theta, *, stride=1, padding=0, dilation=1, groups=1, activation=None):
    """As :func:`filtered_conv1d` with input (B, C, H, W) and weight (out, C / groups, K, L)."""
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return _filtered_conv(F.conv2d, input, weight, bias, theta, activation, **options)


def filtered_conv3d(input, weight, bias, theta, *, stride=1, padding=0, dilation=1, groups=1, activation=None):
    """As :func:`filtered_conv1d` with input (B, C, D, H, W) and weight (out, C / groups, K, L, M)."""
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return _filtered_conv(F.conv3d, input, weight, bias, theta, activation, **options)


def filtered_batch_norm(
    input, running_mean, running_var, weight, bias, theta, *, training=False, momentum=0.1, eps=1e-5
):
    """``batch_norm(input) * max(0, theta)`` with the filter inside the affine pair.

    input: (B, C, ...); running_mean, running_var, weight, bias: (C,) or None; theta: (C,). A dead feature comes out as
    exact zeros as long as its input is finite.
    """
    if weight is None:
        weight = torch.ones_like(theta)
    weight, bias = fold(weight, bias, theta)
    return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
