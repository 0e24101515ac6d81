"""layer_norm: layer norm and RMS norm over the alive features of the last dimension, the filter inside the affine pair.

With ``s = max(0, theta)``, the mean and the variance of a row's n alive features (theta > 0) and ``r = 1 / sqrt(var + eps)``::

    xhat[k] = (x[k] - mean) r        y[k] = (xhat[k] weight[k] + bias[k]) s[k]        0 where theta[k] <= 0

With ``rms`` the mean is taken as 0. A dead feature is not counted and comes out as an exact zero, even where its x, weight or bias
is NaN or infinite, so removing it changes nothing. For the upstream gradient g, with ``h = g s weight``, ``G = sum of g xhat`` and
``b = sum of g`` over rows, means over the alive::

    dx = r (h - mean(h) - xhat mean(h xhat))      (without mean(h) for rms; 0 where theta <= 0)
    dweight = s G      dbias = s b      dtheta = [theta > 0] (weight G + bias b)

Saved is what the plain norm saves: x, mean and r, one each for a row, and the parameters. x: (*, C) with any strides; weight, bias: (C,)
or None; theta: (C,). float64, float32, float16 or bfloat16, mixed as you like: y has x's dtype, and all is computed in float64 if any
operand has it, else in float32. Without an alive feature y is 0. Sums are in an order that does not change from run to run.
Source: Ba, Kiros and Hinton 2016; Zhang and Sennrich 2019; ShrinkNets (Leclerc, Fernandez, Madden), equation 1.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from ..insides import register_decomposition
from ..reference import normed, widest
from .autograd import applied, once
from .checks import check_dtype, check_like, check_same_device, check_vector

_layer_norm = torch.ops.shrinknets_fast.layer_norm.default
_layer_norm_backward = torch.ops.shrinknets_fast.layer_norm_backward.default
Gradients = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


@torch.library.register_fake("shrinknets_fast::layer_norm")
def _(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    theta: torch.Tensor,
    eps: float,
    rms: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    check("layer_norm", x, weight, bias, theta)
    rows, wide = math.prod(x.shape[:-1]), widest(x, weight, bias, theta)
    return x.new_empty(x.shape), x.new_empty(0 if rms else rows, dtype=wide), x.new_empty(rows, dtype=wide)


@torch.library.register_fake("shrinknets_fast::layer_norm_backward")
def _(
    grad: torch.Tensor,
    x: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    theta: torch.Tensor,
    rms: bool = False,
    wants_input: bool = True,
    wants_parameters: bool = True,
) -> Gradients:
    op = "layer_norm_backward"
    check(op, x, weight, bias, theta)
    check_like(op, "grad", grad, "x", x, "x", x)
    rows = math.prod(x.shape[:-1])
    for name, t, size in (("mean", mean, 0 if rms else rows), ("rstd", rstd, rows)):
        check_dtype(op, name, t.dtype)
        check_same_device(op, name, t, "x", x)
        check_vector(op, name, t, size, f"the rows of x {tuple(x.shape)}")
    return gradients_of(x, weight, bias, theta, wants_input, wants_parameters)


def gradients_of(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    theta: torch.Tensor,
    wants_input: bool,
    wants_parameters: bool,
) -> Gradients:
    """Contiguous memory for the four gradients, empty where one is not wanted or there is nothing to have it."""

    def vector(t: torch.Tensor | None) -> torch.Tensor:
        return x.new_empty(0) if t is None else t.new_empty(t.shape[0] if wants_parameters else 0)

    return x.new_empty(x.shape if wants_input else 0), vector(weight), vector(bias), vector(theta)


def check(
    op: str, x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, theta: torch.Tensor
) -> None:
    """csrc/layer_norm.h: check_layer_norm."""
    torch._check(x.dim() >= 1, lambda: f"{op}: x has shape (), expected at least one dimension")
    check_dtype(op, "x", x.dtype)
    for name, vector in (("theta", theta), ("weight", weight), ("bias", bias)):
        if vector is not None:
            check_dtype(op, name, vector.dtype)
            check_same_device(op, name, vector, "x", x)
            check_vector(op, name, vector, x.shape[-1], f"the last dimension of x {tuple(x.shape)}")


@register_decomposition(_layer_norm)
def written_out(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    theta: torch.Tensor,
    eps: float,
    rms: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """In torch's own operations: for ONNX, and for TorchScript."""
    y, mean, rstd = normed(x, weight, bias, theta, eps, rms)
    rstd = rstd.flatten()
    return y, rstd.new_empty(0) if mean is None else mean.flatten(), rstd


class LayerNorm(torch.autograd.Function):
    generate_vmap_rule = True  # by a loop over the samples

    @staticmethod
    def forward(
        x: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        theta: torch.Tensor,
        eps: float,
        rms: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return _layer_norm(x, weight, bias, theta, eps, rms)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, weight, bias, theta, _, ctx.rms = inputs
        _, mean, rstd = output
        ctx.save_for_backward(x, mean, rstd, weight, bias, theta)
        ctx.mark_non_differentiable(mean, rstd)
        ctx.set_materialize_grads(False)

    @staticmethod
    @once
    def backward(ctx: Any, grad: torch.Tensor | None, *none: Any) -> tuple[torch.Tensor | None, ...]:
        if grad is None:
            return None, None, None, None, None, None
        x, mean, rstd, weight, bias, theta = ctx.saved_tensors
        wants_input, *rest = ctx.needs_input_grad[:4]
        wants = wants_input, any(rest)
        dx, *vectors = _layer_norm_backward(grad, x, mean, rstd, weight, bias, theta, ctx.rms, *wants)
        given = (g if wants[1] and t is not None else None for g, t in zip(vectors, (weight, bias, theta), strict=True))
        return dx if wants_input else None, *given, None, None


_apply = applied(LayerNorm, written_out)


def layer_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    theta: torch.Tensor,
    eps: float,
    rms: bool = False,
) -> torch.Tensor:
    """The norm of the alive features along the last dimension; see the module's docstring. Differentiable once."""
    return _apply(x, weight, bias, theta, eps, rms)[0]
