"""linear: the filtered linear layer in Triton, filter, bias and activation in the products' own launches.

With ``s = max(0, theta)`` per feature::

    out = act((x weight^T + bias) * s)        act: the identity, or relu

For the upstream gradient grad, with ``h = grad [out > 0]`` (h = grad without relu), ``G = h^T x`` and g the sum of h's rows::

    dx = (h s) weight      dweight = s G      dbias = s g      dtheta[k] = [theta[k] > 0] (<G[k], weight[k]> + g[k] bias[k])

h, h s and G are formed inside the kernels: no pass over anything of the output's size, and nothing is saved beyond x, the
parameters and, with relu, the output. x: (*, in), weight: (out, in), both with any strides; bias: (out,) or None; theta: (out,).
x, which names the dtype of products and output, and the parameters: float32, float16 or bfloat16, mixed as you like. Sums are
float32, in an order that does not change from run to run. float32 multiplies in full, or in tf32 where torch is told to.
CUDA; CPU tensors under ``TRITON_INTERPRET=1``. Source: ShrinkNets (Leclerc, Fernandez, Madden), equation 1.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from .autograd import applied, once
from .checks import check_layer

LIBRARY = torch.library.Library("shrinknets_fast", "FRAGMENT")
LIBRARY.define("linear(Tensor x, Tensor weight, Tensor? bias, Tensor theta, bool relu=False) -> Tensor")
LIBRARY.define(  # out: the output where relu was applied; what is not wanted comes back empty
    "linear_backward(Tensor grad, Tensor x, Tensor weight, Tensor? bias, Tensor theta, Tensor? out=None,"
    " bool wants_input=True, bool wants_parameters=True) -> (Tensor, Tensor, Tensor, Tensor)"
)
_linear = torch.ops.shrinknets_fast.linear
_linear_backward = torch.ops.shrinknets_fast.linear_backward
Gradients = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


@torch.library.register_fake("shrinknets_fast::linear")
def _(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, theta: torch.Tensor, relu: bool = False
) -> torch.Tensor:
    check(x, weight, bias, theta)
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@torch.library.register_fake("shrinknets_fast::linear_backward")
def _(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    theta: torch.Tensor,
    out: torch.Tensor | None = None,
    wants_input: bool = True,
    wants_parameters: bool = True,
) -> Gradients:
    return gradients_of(x, weight, bias, theta, wants_input, wants_parameters)


@torch.library.impl(LIBRARY, "linear", "CUDA")
@torch.library.impl(LIBRARY, "linear", "CPU")
def _(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, theta: torch.Tensor, relu: bool = False
) -> torch.Tensor:
    from ..triton_kernels.linear_launch import linear  # Triton is only needed here

    check(x, weight, bias, theta)
    out = x.new_empty(*x.shape[:-1], weight.shape[0])
    linear(x, weight, bias, theta, out, relu)
    return out


@torch.library.impl(LIBRARY, "linear_backward", "CUDA")
@torch.library.impl(LIBRARY, "linear_backward", "CPU")
def _(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    theta: torch.Tensor,
    out: torch.Tensor | None = None,
    wants_input: bool = True,
    wants_parameters: bool = True,
) -> Gradients:
    from ..triton_kernels.linear_launch import linear_backward

    check(x, weight, bias, theta)
    for name, tensor in (("grad", grad), ("out", out)):
        if tensor is not None:
            torch._check(tensor.shape == (*x.shape[:-1], weight.shape[0]), partial(misfit, name, tensor, weight))
    gradients = gradients_of(x, weight, bias, theta, wants_input, wants_parameters)
    return linear_backward(grad, x, weight, bias, theta, out, gradients, wants_input, wants_parameters)


def gradients_of(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    theta: torch.Tensor,
    wants_input: bool,
    wants_parameters: bool,
) -> Gradients:
    """Contiguous memory for the four gradients, empty where one is not wanted."""
    features, columns = weight.shape if wants_parameters else (0, 0)
    return (
        x.new_empty(x.shape if wants_input else 0),
        weight.new_empty(features, columns),
        weight.new_empty(0) if bias is None else bias.new_empty(features),
        theta.new_empty(features),
    )


def check(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, theta: torch.Tensor) -> None:
    """One line for what does not fit, with the argument and its value."""
    torch._check(weight.dim() == 2, lambda: f"linear: weight has shape {tuple(weight.shape)}, expected (out, in)")
    torch._check(x.dim() >= 1 and x.shape[-1] == weight.shape[1], lambda: misfit("x", x, weight))
    check_layer("linear", x, weight, bias, theta)


def misfit(name: str, tensor: torch.Tensor, weight: torch.Tensor) -> str:
    expected = "(*, in)" if name == "x" else "(*, out)"
    shapes = f"{tuple(tensor.shape)}, expected {expected} to match weight (out, in) = {tuple(weight.shape)}"
    return f"linear: {name} has shape {shapes}"


class Linear(torch.autograd.Function):
    generate_vmap_rule = True  # by a loop over the samples

    @staticmethod
    def forward(
        x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, theta: torch.Tensor, relu: bool
    ) -> torch.Tensor:
        return _linear(x, weight, bias, theta, relu)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, weight, bias, theta, relu = inputs
        ctx.save_for_backward(x, weight, bias, theta, output if relu else None)

    @staticmethod
    @once
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, bias, theta, out = ctx.saved_tensors
        wants_input, *rest = ctx.needs_input_grad[:4]
        wants_parameters = any(rest)
        dx, dweight, dbias, dtheta = _linear_backward(grad, x, weight, bias, theta, out, wants_input, wants_parameters)
        if not wants_parameters:
            return dx, None, None, None, None
        return dx if wants_input else None, dweight, None if bias is None else dbias, dtheta, None


_apply = applied(Linear)


def linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, theta: torch.Tensor, relu: bool = False
) -> torch.Tensor:
    """``act((x weight^T + bias) * max(0, theta))``; see the module's docstring. Differentiable once."""
    return _apply(x, weight, bias, theta, relu)
