"""conv: the filtered convolution in Triton, filter, bias and activation in the products' own launches.

With ``s = max(0, theta)`` per output channel::

    out = act((conv(x, weight) + bias) * s)        act: the identity, or relu

For the upstream gradient grad, with ``h = grad [out > 0]`` (h = grad without relu), and with G and g what a plain convolution's
weight and bias would have as gradients for an upstream h::

    dx = conv_transpose(h s, weight)      dweight = s G      dbias = s g
    dtheta[k] = [theta[k] > 0] (<G[k], weight[k]> + g[k] bias[k])

h, h s and G are formed inside the kernels: no pass over anything of the output's size, and nothing is saved beyond x, the
parameters and, with relu, the output.

x: (B, C, *size) with 1 to 3 sizes; weight: (N, C / groups, *kernel); bias: (N,) or None; theta: (N,); out: (B, N, *out size).
Any strides; where x or weight is in channels-last memory, so is out. Only a gradient without one stride for all its pixels is
copied first. An image has less than 2^30 pixels. x, which names the dtype of products and output, and the parameters: float32,
float16 or bfloat16, mixed as you like. Sums are float32, in an order that does not change from run to run. float32 multiplies in
full, or in tf32 where ``torch.backends.cudnn.conv.fp32_precision`` is "tf32". CUDA; CPU tensors under ``TRITON_INTERPRET=1``.
Source: ShrinkNets (Leclerc, Fernandez, Madden), equation 1; implicit products after cuDNN (Chetlur et al., 2014).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from .autograd import applied, once
from .checks import check_layer

LIBRARY = torch.library.Library("shrinknets_fast", "FRAGMENT")
WINDOW = "int[] stride, int[] padding, int[] dilation, int groups"
LIBRARY.define(f"conv(Tensor x, Tensor weight, Tensor? bias, Tensor theta, {WINDOW}, bool relu=False) -> Tensor")
LIBRARY.define(  # out: the output where relu was applied; what is not wanted comes back empty
    f"conv_backward(Tensor grad, Tensor x, Tensor weight, Tensor? bias, Tensor theta, {WINDOW}, Tensor? out=None,"
    " bool wants_input=True, bool wants_parameters=True) -> (Tensor, Tensor, Tensor, Tensor)"
)
_conv = torch.ops.shrinknets_fast.conv
_conv_backward = torch.ops.shrinknets_fast.conv_backward
Gradients = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


@torch.library.register_fake("shrinknets_fast::conv")
def _(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    theta: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    relu: bool = False,
) -> torch.Tensor:
    check(x, weight, bias, theta, stride, padding, dilation, groups)
    return empty_output(x, weight, stride, padding, dilation)


@torch.library.register_fake("shrinknets_fast::conv_backward")
def _(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    theta: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    out: torch.Tensor | None = None,
    wants_input: bool = True,
    wants_parameters: bool = True,
) -> Gradients:
    return empty_gradients(x, weight, bias, theta, wants_input, wants_parameters)


@torch.library.impl(LIBRARY, "conv", "CUDA")
@torch.library.impl(LIBRARY, "conv", "CPU")
def _(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    theta: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    relu: bool = False,
) -> torch.Tensor:
    from ..triton_kernels import conv_launch  # Triton is only needed here

    check(x, weight, bias, theta, stride, padding, dilation, groups)
    out = empty_output(x, weight, stride, padding, dilation)
    for name, t in (("x", x), ("out", out)):
        need(math.prod(t.shape[2:]) < 1 << 30, f"{name} has shape", tuple(t.shape), "less than 2^30 pixels in an image")
    if out.numel():
        conv_launch.conv(x, weight, bias, theta, out, (stride, padding, dilation, groups), relu)
    return out


@torch.library.impl(LIBRARY, "conv_backward", "CUDA")
@torch.library.impl(LIBRARY, "conv_backward", "CPU")
def _(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    theta: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    out: torch.Tensor | None = None,
    wants_input: bool = True,
    wants_parameters: bool = True,
) -> Gradients:
    from ..triton_kernels import conv_launch

    check(x, weight, bias, theta, stride, padding, dilation, groups)
    like = empty_output(x.detach().to("meta"), weight.to("meta"), stride, padding, dilation)
    for name, t in (("grad", grad), ("out", out)):
        need(t is None or t.shape == like.shape, f"{name} has shape", t is None or tuple(t.shape), tuple(like.shape))
    dx, dweight, dbias, dtheta = empty_gradients(x, weight, bias, theta, wants_input, wants_parameters)
    options = (stride, padding, dilation, groups)
    layout = memory_format(x, weight)
    grad, out = even(grad, layout), None if out is None else even(out, layout)
    if wants_input and dx.numel():
        conv_launch.conv_backward_input(dx, grad, out, weight, theta, options)
    if wants_parameters and grad.numel():
        conv_launch.conv_backward_weight(dweight, dbias, dtheta, grad, out, x, weight, bias, theta, options)
    elif wants_parameters:
        dweight, dbias, dtheta = (t.zero_() for t in (dweight, dbias, dtheta))
    return dx, dweight, dbias, dtheta


def even(t: torch.Tensor, memory_format: torch.memory_format) -> torch.Tensor:
    """``t`` with one stride for all pixels: itself nearly always."""
    from ..triton_kernels.conv_launch import pixel_stride

    return t if pixel_stride(t) is not None else t.contiguous(memory_format=memory_format)


def empty_output(
    x: torch.Tensor, weight: torch.Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> torch.Tensor:
    sizes = [
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, k, s, p, d in zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    ]
    kernel = tuple(weight.shape[2:])
    for size in sizes:
        need(
            size > 0, "x has shape", tuple(x.shape), f"sizes that a kernel {kernel} with dilation {dilation} fits into"
        )
    shape = (x.shape[0], weight.shape[0], *sizes)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format(x, weight))


def empty_gradients(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    theta: torch.Tensor,
    wants_input: bool,
    wants_parameters: bool,
) -> Gradients:
    """Memory for the four gradients, empty where one is not wanted."""
    dx = torch.empty_like(x) if wants_input else x.new_empty(0)
    if not wants_parameters:
        return dx, weight.new_empty(0), weight.new_empty(0), theta.new_empty(0)
    dbias = weight.new_empty(0) if bias is None else bias.new_empty(bias.shape[0])
    return dx, torch.empty_like(weight), dbias, theta.new_empty(theta.shape[0])


def memory_format(x: torch.Tensor, weight: torch.Tensor) -> torch.memory_format:
    if not (channels_last(x) or channels_last(weight)):
        return torch.contiguous_format
    return torch.channels_last if x.dim() == 4 else torch.channels_last_3d


def channels_last(t: torch.Tensor) -> bool:
    return t.dim() > 3 and t.stride(1) == 1 and t.stride(-1) >= t.shape[1]


def check(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    theta: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> None:
    """One line for what does not fit, with the argument and its value."""
    dims = x.dim() - 2
    need(1 <= dims <= 3, "x has shape", tuple(x.shape), "3 to 5 dimensions")
    need(weight.dim() == x.dim(), "weight has shape", tuple(weight.shape), f"{x.dim()} dimensions as x")
    need(weight.numel() > 0, "weight has shape", tuple(weight.shape), "at least one channel and one tap")
    for name, values, least in (("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1)):
        good = len(values) == dims and all(v >= least for v in values)
        need(good, f"{name} is", list(values), f"{dims} integers of at least {least}")
    need(groups >= 1 and weight.shape[0] % groups == 0, "groups is", groups, f"a divisor of {weight.shape[0]}")
    channels = weight.shape[1] * groups
    need(x.shape[1] == channels, "x has shape", tuple(x.shape), f"{channels} channels for weight {tuple(weight.shape)}")
    check_layer("conv", x, weight, bias, theta)


def need(condition: bool, name: str, found: object, expected: object) -> None:
    torch._check(condition, lambda: f"conv: {name} {found}, expected {expected}")


class Conv(torch.autograd.Function):
    generate_vmap_rule = True  # by a loop over the samples

    @staticmethod
    def forward(
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        theta: torch.Tensor,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
        relu: bool,
    ) -> torch.Tensor:
        return _conv(x, weight, bias, theta, stride, padding, dilation, groups, relu)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, weight, bias, theta, *ctx.window, relu = inputs
        ctx.save_for_backward(x, weight, bias, theta, output if relu else None)

    @staticmethod
    @once
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, bias, theta, out = ctx.saved_tensors
        wants_input, *rest = ctx.needs_input_grad[:4]
        wants = (wants_input, any(rest))
        dx, dweight, dbias, dtheta = _conv_backward(grad, x, weight, bias, theta, *ctx.window, out, *wants)
        dx = dx if wants_input else None
        if not any(rest):
            return dx, *[None] * 8
        return dx, dweight, None if bias is None else dbias, dtheta, *[None] * 5


_apply = applied(Conv)


def conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    theta: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int = 1,
    relu: bool = False,
) -> torch.Tensor:
    """``act((conv(x, weight) + bias) * max(0, theta))``; see the module's docstring. stride, padding and dilation: an integer
    for each dimension. Differentiable once."""
    return _apply(x, weight, bias, theta, stride, padding, dilation, groups, relu)
