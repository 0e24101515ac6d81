"""layer_norm: layer norm and RMS norm over the alive features of the last dimension, the filter inside the affine pair.

With ``s = max(0, theta)``, the mean and the variance of a row's n alive features (theta > 0) and ``r = 1 / sqrt(var + eps)``::

    xhat[k] = (x[k] - mean) r        y[k] = (xhat[k] weight[k] + bias[k]) s[k]        0 where theta[k] <= 0

With ``rms`` the mean is taken as 0. A dead feature is not counted and comes out as an exact zero, even where its x, weight or
bias is NaN or infinite, so removing it changes nothing. For the upstream gradient g, with ``h = g s weight``, ``G = sum of g
xhat`` and ``b = sum of g`` over rows, means over the alive::

    dx = r (h - mean(h) - xhat mean(h xhat))      (without mean(h) for rms; 0 where theta <= 0)
    dweight = s G      dbias = s b      dtheta = [theta > 0] (weight G + bias b)

Saved is what the plain norm saves: x, mean and r, one each for a row, and the parameters. x: (*, C) with any strides; weight,
bias: (C,) or None; theta: (C,). float64, float32, float16 or bfloat16, mixed as you like: y has x's dtype, and all is computed
in float64 if any operand has it, else in float32. Without an alive feature y is 0. Sums are in an order that does not change
from run to run. Source: Ba, Kiros and Hinton 2016; Zhang and Sennrich 2019; ShrinkNets (Leclerc, Fernandez, Madden), equation
1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from ..insides import register_decomposition
from ..reference import affine_gradients, normed, normed_backward, widest
from .autograd import applied, once
from .checks import IN_TRITON, check_dtype, check_like, check_same_device, check_vector

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
    check_backward(grad, x, mean, rstd, weight, bias, theta, rms)
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


def check_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    theta: torch.Tensor,
    rms: bool,
) -> None:
    """csrc/layer_norm.h: check_layer_norm_backward."""
    op = "layer_norm_backward"
    check(op, x, weight, bias, theta)
    check_like(op, "grad", grad, "x", x, "x", x)
    rows = math.prod(x.shape[:-1])
    for name, t, size in (("mean", mean, 0 if rms else rows), ("rstd", rstd, rows)):
        check_dtype(op, name, t.dtype)
        check_same_device(op, name, t, "x", x)
        check_vector(op, name, t, size, f"the rows of x {tuple(x.shape)}")


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


def by_triton(*tensors: torch.Tensor | None) -> bool:
    """Its kernels sum in float32."""
    return all(t is None or t.dtype in IN_TRITON for t in tensors)


def on_gpu(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    theta: torch.Tensor,
    eps: float,
    rms: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    check("layer_norm", x, weight, bias, theta)
    if not by_triton(x, weight, bias, theta):
        y, mean, rstd = written_out(x, weight, bias, theta, eps, rms)
        return y.contiguous(), mean, rstd
    from ..triton_kernels import layer_norm_launch  # Triton is only needed here

    y, rstd = x.new_empty(x.shape), x.new_empty(math.prod(x.shape[:-1]), dtype=torch.float32)
    mean = rstd.new_empty(0 if rms else rstd.shape)
    layer_norm_launch.layer_norm(x, weight, bias, theta, eps, rms, y, mean, rstd)
    return y, mean, rstd


def on_gpu_backward(
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
    check_backward(grad, x, mean, rstd, weight, bias, theta, rms)
    out = gradients_of(x, weight, bias, theta, wants_input, wants_parameters)
    vectors: Sequence[torch.Tensor | None] = ()
    if by_triton(grad, x, weight, bias, theta):
        from ..triton_kernels import layer_norm_launch

        if wants_input:
            layer_norm_launch.layer_norm_backward_input(grad, x, mean, rstd, weight, theta, rms, out[0])
        if wants_parameters:
            sums = layer_norm_launch.layer_norm_sums(grad, x, mean, rstd, theta, rms)
            vectors = affine_gradients(sums, weight, bias, theta)
    else:
        means, rates = (None if rms else mean.view(*x.shape[:-1], 1)), rstd.view(*x.shape[:-1], 1)
        dx, *vectors = normed_backward(grad, x, means, rates, weight, bias, theta)
        if wants_input and dx is not None:
            out[0].copy_(dx)
    if wants_parameters:
        for memory, gradient in zip(out[1:], vectors, strict=True):
            if gradient is not None:
                memory.copy_(gradient)
    return out


LIBRARY = torch.library.Library("shrinknets_fast", "FRAGMENT")
LIBRARY.impl("layer_norm", on_gpu, "CUDA")
LIBRARY.impl("layer_norm_backward", on_gpu_backward, "CUDA")


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
