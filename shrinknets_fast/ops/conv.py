"""conv: the filtered convolution in one kernel, ``act((conv(x, weight) + bias) * s)`` with ``s = max(0, theta)`` per output channel.

The filter, the bias and the activation act on sums that are still in registers, and going back on values just loaded, so that no
pass over activations is added. For the upstream gradient ``g``, with ``m = g [out > 0]`` where act is relu and ``m = g`` where it is
not, and with ``G`` and ``h`` the gradients that a plain convolution would have for upstream m::

    dx = conv_transpose(m s, weight)    dweight = s G    dbias = s h    dtheta[k] = [theta[k] > 0] (<G[k], weight[k]> + h[k] bias[k])

x: (B, C, *size) with 1 to 3 sizes; weight: (N, C / groups, *kernel); bias: (N,) or None; theta: (N,). out: (B, N, *out size), in
channels-last memory where x or weight is. A dead channel is exactly 0 whatever its weight and bias hold. x is float32, float16 or
bfloat16, as is out; parameters may be wider (autocast needs no cast of them). float32 products are TF32 where
``torch.backends.cudnn.allow_tf32``; sums are float32, in an order that the shapes fix. Any strides; a gradient without one
stride for all pixels is copied first. An image has less than 2^30 pixels. On the CPU for tests only, with TRITON_INTERPRET=1.

Saved for backward: x and the parameters, and the output where act is relu, as the plain layer does.
Source: ShrinkNets (Leclerc, Fernandez, Madden), equation 1; implicit GEMM after cuDNN (Chetlur et al., 2014).
"""

import math
import os

import torch
from torch.autograd.function import once_differentiable

from ..errors import ShrinkError
from .conv_launch import conv_backward_input_launch, conv_backward_weight_launch, conv_launch, pixel_stride

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
ARGUMENTS = "int[] stride, int[] padding, int[] dilation, int groups, bool relu"
torch.library.define(
    "shrinknets_fast::conv", f"(Tensor x, Tensor weight, Tensor? bias, Tensor theta, {ARGUMENTS}) -> Tensor"
)
torch.library.define(
    "shrinknets_fast::conv_backward",
    f"(Tensor grad, Tensor? out, Tensor x, Tensor weight, Tensor? bias, Tensor theta, {ARGUMENTS}, bool[2] wanted)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)


def check(x, weight, bias, theta, stride, padding, dilation, groups):
    """Everything that kernels and fakes refuse; every message names the argument and its value."""

    def need(condition, name, found, expected):
        torch._check(condition, lambda: f"conv: {name} {found}, expected {expected}")

    dims = x.dim() - 2
    need(1 <= dims <= 3, "x has", f"{x.dim()} dimensions", "3 to 5")
    need(weight.dim() == x.dim(), "weight has", f"{weight.dim()} dimensions", f"{x.dim()} as x")
    for name, values, least in (("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1)):
        good = len(values) == dims and all(v >= least for v in values)
        need(good, f"{name} is", list(values), f"{dims} integers of at least {least}")
    need(groups >= 1 and weight.shape[0] % groups == 0, "groups is", groups, f"a divisor of {weight.shape[0]}")
    channels = weight.shape[1] * groups
    need(x.shape[1] == channels, "x has shape", tuple(x.shape), f"{channels} channels for weight {tuple(weight.shape)}")
    for name, vector in (("theta", theta), ("bias", bias)):
        if vector is not None:
            good = vector.dim() == 1 and vector.shape[0] == weight.shape[0]
            need(good, f"{name} has shape", tuple(vector.shape), f"({weight.shape[0]},)")
    need(x.dtype in DTYPES, "x has dtype", x.dtype, "float32, float16 or bfloat16")
    for name, t in (("weight", weight), ("bias", bias), ("theta", theta)):
        if t is not None:
            need(t.dtype in DTYPES, f"{name} has dtype", t.dtype, "float32, float16 or bfloat16")
            need(t.device == x.device, f"{name} is on", t.device, f"{x.device} as x")


def check_device(x):
    if not x.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise ShrinkError(f"conv: x is on {x.device}, expected a CUDA device (or TRITON_INTERPRET=1, for tests)")


def channels_last(t):
    return t.dim() > 3 and t.stride(1) == 1 and t.stride(-1) >= t.shape[1]


def memory_format(x, weight):
    if not (channels_last(x) or channels_last(weight)):
        return torch.contiguous_format
    return torch.channels_last if x.dim() == 4 else torch.channels_last_3d


def empty_output(x, weight, stride, padding, dilation):
    sizes = [
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, k, s, p, d in zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    ]
    for size in sizes:
        torch._check(size > 0, lambda: f"conv: x {tuple(x.shape)} is smaller than the kernel {tuple(weight.shape[2:])}")
    shape = (x.shape[0], weight.shape[0], *sizes)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format(x, weight))


@torch.library.impl("shrinknets_fast::conv", ("cpu", "cuda"))
def _conv(x, weight, bias, theta, stride, padding, dilation, groups, relu):
    check(x, weight, bias, theta, stride, padding, dilation, groups)
    check_device(x)
    out = empty_output(x, weight, stride, padding, dilation)
    for name, t in (("x", x), ("out", out)):
        if math.prod(t.shape[2:]) >= 1 << 30:
            raise ShrinkError(f"conv: {name} has shape {tuple(t.shape)}, expected less than 2^30 pixels in an image")
    if out.numel():
        vectors = (None if bias is None else bias.contiguous(), theta.contiguous())
        conv_launch(out, x, weight, *vectors, stride, padding, dilation, groups, relu)
    return out


@torch.library.register_fake("shrinknets_fast::conv")
def _(x, weight, bias, theta, stride, padding, dilation, groups, relu):
    check(x, weight, bias, theta, stride, padding, dilation, groups)
    return empty_output(x, weight, stride, padding, dilation)


def empty_gradients(x, weight, bias, theta, wanted):
    dx = torch.empty_like(x) if wanted[0] else x.new_empty(0)
    if not wanted[1]:
        return dx, weight.new_empty(0), weight.new_empty(0), theta.new_empty(0)
    dbias = weight.new_empty(0) if bias is None else bias.new_empty(bias.shape[0])
    return dx, torch.empty_like(weight), dbias, theta.new_empty(theta.shape[0])


@torch.library.impl("shrinknets_fast::conv_backward", ("cpu", "cuda"))
def _conv_backward(grad, out, x, weight, bias, theta, stride, padding, dilation, groups, relu, wanted):
    check_device(x)
    dx, dweight, dbias, dtheta = empty_gradients(x, weight, bias, theta, wanted)
    if pixel_stride(grad) is None:
        grad = grad.contiguous(memory_format=memory_format(x, weight))
    options = (stride, padding, dilation, groups, relu)
    theta = theta.contiguous()
    if wanted[0] and dx.numel():
        conv_backward_input_launch(dx, grad, out, weight, theta, *options)
    if wanted[1] and grad.numel():
        bias = None if bias is None else bias.contiguous()
        conv_backward_weight_launch(dweight, dbias, dtheta, grad, out, x, weight, bias, theta, *options)
    elif wanted[1]:
        for t in (dweight, dbias, dtheta):
            t.zero_()
    return dx, dweight, dbias, dtheta


@torch.library.register_fake("shrinknets_fast::conv_backward")
def _(grad, out, x, weight, bias, theta, stride, padding, dilation, groups, relu, wanted):
    return empty_gradients(x, weight, bias, theta, wanted)


_op, _op_backward = torch.ops.shrinknets_fast.conv, torch.ops.shrinknets_fast.conv_backward


class Conv(torch.autograd.Function):
    @staticmethod
    def forward(x, weight, bias, theta, *options):
        return _op(x, weight, bias, theta, *options)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, bias, theta, *ctx.options = inputs
        ctx.save_for_backward(x, weight, bias, theta, output if ctx.options[-1] else None)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight, bias, theta, out = ctx.saved_tensors
        wanted = [ctx.needs_input_grad[0], any(ctx.needs_input_grad[1:4])]
        grads = _op_backward(grad, out, x, weight, bias, theta, *ctx.options, wanted)
        used = (wanted[0], wanted[1], wanted[1] and bias is not None, wanted[1])
        return *(g if use else None for g, use in zip(grads, used, strict=True)), *[None] * len(ctx.options)


def conv(x, weight, bias, theta, *, stride, padding, dilation, groups=1, activation=None):
    """See the module's docstring. stride, padding and dilation have an integer per dimension. Differentiable once."""
    return Conv.apply(x, weight, bias, theta, stride, padding, dilation, groups, activation == "relu")
