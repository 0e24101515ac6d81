"""filter: the stand-alone layer, ``y = x * max(0, theta)`` along one dimension.

theta: (C,) for an x with C entries along ``dim``; or one entry, which gates the whole tensor. x: any number of dimensions and any
strides; contiguous and channels-last ones are read in their own order. A dead feature's output is exactly zero even where x is
NaN or infinite. For the upstream gradient g, in one read of g and x::

    dx = s g        dtheta[c] = [theta[c] > 0] sum of g x over everything but dim

With ``relu``: ``y = relu(x * max(0, theta))``, and y is saved in x's place, as torch's own relu does. With ``h = g [y > 0]``::

    dx = s h        dtheta[c] = [theta[c] > 0] sum of h y over everything but dim, over theta[c]

float64, float32, float16 or bfloat16, theta's dtype apart from x's: computed in float64 if any operand has it, else in float32.
Sums are in an order that does not change from run to run. Source: ShrinkNets (Leclerc, Fernandez, Madden), equation 1.
"""

from __future__ import annotations

from typing import Any

import torch

from ..insides import register_decomposition
from ..reference import scaled, widest
from .autograd import applied, once
from .checks import check_dtype, check_like, check_same_device, check_vector

_filter = torch.ops.shrinknets_fast.filter.default
_filter_backward = torch.ops.shrinknets_fast.filter_backward


@torch.library.register_fake("shrinknets_fast::filter")
def _(x: torch.Tensor, theta: torch.Tensor, dim: int = 1, relu: bool = False) -> torch.Tensor:
    check("filter", x, theta, dim)
    return torch.empty_like(x)


@torch.library.register_fake("shrinknets_fast::filter_backward")
def _(
    grad: torch.Tensor, x: torch.Tensor, theta: torch.Tensor, dim: int = 1, relu: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    check("filter_backward", x, theta, dim)
    check_like("filter_backward", "grad", grad, "x", x, "x", x)
    return torch.empty_like(x), theta.new_empty(theta.shape[0])


def check(op: str, x: torch.Tensor, theta: torch.Tensor, dim: int) -> None:
    """csrc/filter.h: check_filter."""
    check_dtype(op, "x", x.dtype)
    check_dtype(op, "theta", theta.dtype)
    check_same_device(op, "theta", theta, "x", x)
    torch._check(theta.dim() == 1, lambda: f"{op}: theta has shape {tuple(theta.shape)}, expected one dimension")
    if theta.shape[0] == 1:  # a gate takes any tensor
        return
    ndim, shape = x.dim(), tuple(x.shape)
    torch._check(ndim > 0, lambda: f"{op}: x has shape (), expected a dimension of size {theta.shape[0]}")
    torch._check(-ndim <= dim < ndim, lambda: f"{op}: dim is {dim}, expected {-ndim} to {ndim - 1} for x {shape}")
    check_vector(op, "theta", theta, x.shape[dim], f"dimension {dim % ndim} of x {shape}")


@register_decomposition(_filter)
def written_out(x: torch.Tensor, theta: torch.Tensor, dim: int = 1, relu: bool = False) -> torch.Tensor:
    """In torch's own operations: for ONNX, and for TorchScript."""
    y = scaled(x, theta, dim, widest(x, theta)).to(x.dtype).view_as(x)  # which a theta that does not fit had broadcast
    return torch.relu(y) if relu else y


class Filter(torch.autograd.Function):
    generate_vmap_rule = True  # by a loop over the samples

    @staticmethod
    def forward(x: torch.Tensor, theta: torch.Tensor, dim: int, relu: bool) -> torch.Tensor:
        return _filter(x, theta, dim, relu)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, theta, ctx.dim, ctx.relu = inputs
        ctx.save_for_backward(output if ctx.relu else x, theta)

    @staticmethod
    @once
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        dx, dtheta = _filter_backward(grad, *ctx.saved_tensors, ctx.dim, ctx.relu)
        return dx, dtheta, None, None


_apply = applied(Filter, written_out)


def filter(x: torch.Tensor, theta: torch.Tensor, dim: int = 1, relu: bool = False) -> torch.Tensor:
    """``x * max(0, theta)`` along ``dim``, or relu of it; see the module's docstring. Differentiable once."""
    return _apply(x, theta, dim, relu)
