"""epilogue: the filtered linear layer, or convolution, as the library's product and one pass over its output.

With ``z = x weight^T + bias`` (or ``conv(x, weight) + bias``) and ``s = max(0, theta)``: ``out = act(z s)``, act the identity or
relu; see filter.py for what becomes of the upstream gradient, dz and dtheta, in one pass. From there::

    dx = dz weight      dweight = dz^T x      dbias = sum of dz's rows

and for a convolution what its own backward makes of dz. No pass over the weights: for layers with more weights than outputs,
where folding would cost more. Saved are x, the parameters and out; without relu z, which the plain layer does not need. Dead
features give exact zeros whatever they hold, dx included. x: (*, in), or (B, C, *size); x, weight and bias of one dtype.
Source: ShrinkNets (Leclerc, Fernandez, Madden), equation 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from .autograd import applied, eager, once
from .filter import filter

Window = tuple[Sequence[int], Sequence[int], Sequence[int], int]  # stride, padding, dilation, groups
LIBRARY = torch.library.Library("shrinknets_fast", "FRAGMENT")
# What looks at theta's values is an op, which torch.compile does not look into; called as such it takes 30 us more.
LIBRARY.define("alive_product(Tensor grad, Tensor weight, Tensor theta) -> Tensor")
WINDOW = "SymInt[] stride, SymInt[] padding, SymInt[] dilation, SymInt groups"
LIBRARY.define(f"alive_conv_input(Tensor grad, Tensor x, Tensor weight, Tensor theta, {WINDOW}) -> Tensor")
ops = torch.ops.shrinknets_fast


def around_the_dead(
    product: Callable[[torch.Tensor], torch.Tensor], weight: torch.Tensor, theta: torch.Tensor
) -> torch.Tensor:
    """``product(weight)``, of which the dead rows count for nothing whatever they hold: 0 * NaN is NaN.

    Their zeros are in the other factor, so only where they hold something that is not finite do they have to be cleared, and that
    shows in the result. On the CPU one look at it is cheaper than a pass over all of weight; elsewhere it would have to wait.
    """
    if weight.is_cpu:
        result = product(weight)
        try:
            if math.isfinite(result.sum().item()):
                return result
        except RuntimeError:  # a batched or a fake tensor has no value to look at
            pass
    dead = (theta <= 0).view(-1, *[1] * (weight.dim() - 1))
    return product(torch.where(dead, torch.zeros_like(weight[:1]), weight))


@torch.library.impl(LIBRARY, "alive_product", "CompositeExplicitAutograd")
def alive_product(grad: torch.Tensor, weight: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
    """``grad @ weight`` for a grad that is zero where theta is dead."""
    return around_the_dead(lambda alive: grad @ alive, weight, theta)


@torch.library.register_fake("shrinknets_fast::alive_product")
def _(grad: torch.Tensor, weight: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
    return grad.new_empty(*grad.shape[:-1], weight.shape[1])


@torch.library.impl(LIBRARY, "alive_conv_input", "CompositeExplicitAutograd")
def alive_conv_input(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    theta: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> torch.Tensor:
    """The gradient of a convolution's input for a grad that is zero where theta is dead."""
    window = (stride, padding, dilation, groups)
    return around_the_dead(lambda alive: conv_backward(grad, x, alive, window, [True, False, False])[0], weight, theta)


@torch.library.register_fake("shrinknets_fast::alive_conv_input")
def _(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    theta: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> torch.Tensor:
    return conv_backward(grad, x, weight, (stride, padding, dilation, groups), [True, False, False])[0]


def conv_backward(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, window: Window, wanted: Sequence[bool]
) -> Any:
    stride, padding, dilation, groups = window
    sizes = [weight.shape[0]] if wanted[2] else None
    return torch.ops.aten.convolution_backward(
        grad, x, weight, sizes, stride, padding, dilation, False, [0] * len(stride), groups, wanted
    )


class Product(torch.autograd.Function):
    """``x weight^T + bias``, whose upstream gradient is zero where theta is dead."""

    generate_vmap_rule = True  # by a loop over the samples

    @staticmethod
    def forward(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, theta: torch.Tensor) -> torch.Tensor:
        return F.linear(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, weight, _, theta = inputs
        ctx.save_for_backward(x, weight, theta)

    @staticmethod
    @once
    def backward(ctx: Any, dz: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, theta = ctx.saved_tensors
        wants_x, wants_weight, wants_bias, _ = ctx.needs_input_grad
        flat = dz.reshape(dz.shape[:-1].numel(), dz.shape[-1])
        product = ops.alive_product if torch.compiler.is_compiling() else alive_product
        dx = product(dz, weight, theta) if wants_x else None
        dweight = flat.t() @ x.reshape(len(flat), x.shape[-1]) if wants_weight else None
        return dx, dweight, flat.sum(0) if wants_bias else None, None


class ConvProduct(torch.autograd.Function):
    """``conv(x, weight) + bias``, whose upstream gradient is zero where theta is dead."""

    generate_vmap_rule = True  # by a loop over the samples

    @staticmethod
    def forward(
        x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, theta: torch.Tensor, window: Window
    ) -> torch.Tensor:
        return convolution(x, weight, bias, window)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, weight, _, theta, ctx.window = inputs
        ctx.save_for_backward(x, weight, theta)

    @staticmethod
    @once
    def backward(ctx: Any, dz: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, theta = ctx.saved_tensors
        input_gradient = ops.alive_conv_input if torch.compiler.is_compiling() else alive_conv_input
        dx = input_gradient(dz, x, weight, theta, *ctx.window) if ctx.needs_input_grad[0] else None
        _, dweight, dbias = conv_backward(dz, x, weight, ctx.window, [False, *ctx.needs_input_grad[1:3]])
        return dx, dweight, dbias, None, None


def convolution(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, window: Window) -> torch.Tensor:
    stride, padding, dilation, groups = window
    return torch.convolution(x, weight, bias, stride, padding, dilation, False, [0] * len(stride), groups)


_product, _conv_product = applied(Product), applied(ConvProduct)


def epilogue(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, theta: torch.Tensor, relu: bool = False
) -> torch.Tensor:
    """``act((x weight^T + bias) * max(0, theta))``; see the module's docstring. Differentiable once."""
    plain = eager() and not x.requires_grad  # what a transform looks through may say that it does not
    z = F.linear(x, weight, bias) if plain else _product(x, weight, bias, theta.detach())
    return scaled(z, theta, -1, relu)


def conv_epilogue(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    theta: torch.Tensor,
    window: Window,
    relu: bool = False,
) -> torch.Tensor:
    """``act((conv(x, weight) + bias) * max(0, theta))``; window: (stride, padding, dilation, groups), lists but for groups."""
    plain = eager() and not x.requires_grad
    z = convolution(x, weight, bias, window) if plain else _conv_product(x, weight, bias, theta.detach(), window)
    return scaled(z, theta, 1, relu)


def scaled(z: torch.Tensor, theta: torch.Tensor, dim: int, relu: bool) -> torch.Tensor:
    if (
        relu and z.dtype == torch.float16
    ):  # from 6e-5 down it loses bits: an output times a small theta is no z for dtheta
        return F.relu(filter(z, theta, dim))
    return filter(z, theta, dim, relu)
