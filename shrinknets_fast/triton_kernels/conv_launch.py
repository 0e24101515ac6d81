"""From tensors to launches of the convolution kernels: sizes and strides in the kernels' form, blocks, how many programs."""

import functools
import math

import torch

from .blocks import launch_options, tiles
from .conv import conv_kernel
from .conv_backward_input import conv_backward_input_kernel
from .conv_backward_weight import conv_backward_finish_kernel, conv_backward_weight_kernel
from .conv_blocks import FINISH, blocks_for, flat, rows_of_a_part
from .launch import check_device, dense, on, precision_of, products_of

NARROW = 2**31 - 2**16  # offsets below this, and what a tile adds to them, fit into 32 bits


def conv(x, weight, bias, theta, out, options, relu):
    """Fills ``out``; the formulas are in ops/conv.py."""
    launch = Launch(x, weight, [out], options)
    pixels = out.numel() // out.shape[1]

    def programs(m, n, k):
        return tiles(pixels, m) * launch.groups * tiles(launch.features, n)

    blocks = launch.blocks("conv", programs)
    bias = dense(bias)
    launch(
        conv_kernel,
        programs(*blocks[:3]),
        (x, weight, theta if bias is None else bias, theta.contiguous(), out),
        (*launch.sizes, *launch.ends, *launch.strides(x, weight), *launch.pixel_strides(out)),
        FLAT=launch.flat(launch.channels, blocks[2]),
        HAS_BIAS=bias is not None,
        RELU=relu,
        **launch_options(blocks),
    )


def conv_backward_input(dx, grad, out, weight, theta, options):
    """Fills ``dx``."""
    saved = grad if out is None else out
    launch = Launch(dx, weight, [grad, saved], options)
    stride, dilation = launch.window["STRIDE"], launch.window["DILATION"]
    pixels = len(dx) * math.prod(tiles(i, s) for i, s in zip(launch.ends[0], stride, strict=True))

    def programs(m, n, k):
        return tiles(pixels, m) * math.prod(stride) * launch.groups * tiles(launch.channels, k)

    blocks = launch.blocks("conv_backward_input", programs)
    common = [common_and_inverse(d, s) for d, s in zip(dilation, stride, strict=True)]
    launch(
        conv_backward_input_kernel,
        programs(*blocks[:3]),
        (grad, saved, weight, theta.contiguous(), dx),
        (*launch.sizes, *launch.ends, *launch.pixel_strides(grad, saved), *launch.strides(weight, dx)),
        COMMON=tuple(g for g, _ in common),
        INVERSE=tuple(i for _, i in common),
        FLAT=launch.flat(launch.features, blocks[1]),
        RELU=out is not None,
        **launch_options(blocks),
    )


def conv_backward_weight(dweight, dbias, dtheta, grad, out, x, weight, bias, theta, options):
    """Fills ``dweight``, ``dbias`` and ``dtheta``."""
    saved = grad if out is None else out
    launch = Launch(x, weight, [grad, saved], options)
    pixels = grad.numel() // grad.shape[1]

    def programs(m, n, k):
        columns = launch.taps * launch.channels if launch.flat(launch.channels, k) else launch.channels
        columns = tiles(columns, k) * (1 if launch.flat(launch.channels, k) else launch.taps)
        return launch.groups * tiles(launch.features, n) * columns

    blocks = launch.blocks("conv_backward_weight", programs)
    rows = rows_of_a_part(pixels, programs(*blocks[:3]), blocks[0])
    parts = tiles(pixels, rows)
    bias = dense(bias)
    sums = x.new_empty((parts, len(weight), launch.taps * launch.channels), dtype=torch.float32)
    bias_sums = sums if bias is None else x.new_empty((parts, len(weight)), dtype=torch.float32)
    launch(
        conv_backward_weight_kernel,
        parts * programs(*blocks[:3]),
        (grad, saved, x, sums, bias_sums),
        (*launch.sizes, rows, *launch.ends, *launch.pixel_strides(grad, saved), *launch.strides(x)),
        FLAT=launch.flat(launch.channels, blocks[2]),
        HAS_BIAS=bias is not None,
        RELU=out is not None,
        **launch_options(blocks),
    )
    theta = theta.contiguous()
    launch(
        conv_backward_finish_kernel,
        len(weight),
        (sums, bias_sums, weight, theta if bias is None else bias, theta, dweight, dbias, dtheta),
        (parts, launch.channels, len(weight), all_strides(weight), all_strides(dweight)),
        HAS_BIAS=bias is not None,
        **FINISH,
    )


class Launch:
    """What the kernels of one call share. ``outputs``: the tensors shaped like the output."""

    def __init__(self, x, weight, outputs, options):
        check_device("conv", x)
        stride, padding, dilation, self.groups = options
        self.device = x.device
        self.products = products_of(x, torch.backends.cudnn.conv)  # type: ignore[attr-defined]  # set on import
        self.channels, self.features = weight.shape[1], len(weight) // self.groups
        self.taps = math.prod(weight.shape[2:])
        self.ends = (three(x.shape[2:], 1), three(outputs[0].shape[2:], 1))
        self.window = {
            "KERNEL": three(weight.shape[2:], 1),
            "STRIDE": three(stride, 1),
            "PADDING": three(padding, 0),
            "DILATION": three(dilation, 1),
            "DIMS": len(stride),
        }
        self.set_unit([x, weight, *outputs], 16 // x.element_size())
        self.sizes = (len(x), self.groups, self.channels // self.unit, self.features // self.unit)

    def set_unit(self, tensors, unit):
        """How many elements are 16 bytes of x, if all is in channels-last memory and can be read by so many; else 1."""
        self.wide = any(reach(t) >= NARROW for t in tensors)
        steps = [
            s for t in tensors for d, (n, s) in enumerate(zip(t.shape, t.stride(), strict=True)) if n > 1 and d != 1
        ]
        whole = not any(n % unit for n in (self.channels, self.features, *steps))
        aligned = all(t.stride(1) == 1 and not t.data_ptr() % 16 for t in tensors)
        self.unit = unit if whole and aligned and not self.wide else 1

    def strides(self, *tensors):
        return (counted(all_strides(t), self.unit) for t in tensors)

    def pixel_strides(self, *tensors):
        return (counted((*t.stride()[:2], pixel_stride(t)), self.unit) for t in tensors)

    def flat(self, channels, block):
        return flat(channels, self.taps, block)

    def blocks(self, kernel, programs):
        return blocks_for(kernel, self.products, self.unit, self.wide, programs)

    def __call__(self, kernel, programs, tensors, scalars, **options):
        known = self.window | {"WIDE": self.wide, "UNIT": self.unit}
        known["PRECISION"] = precision_of(self.products)
        known = {name: value for name, value in known.items() if name in kernel.arg_names}
        with on(self.device):
            kernel[(programs,)](*tensors, *scalars, **known, **options)


def three(values, missing):
    """As (D, H, W), whichever of them are in use."""
    return (missing,) * (3 - len(values)) + tuple(values)


def reach(t):
    """The offset of the last element."""
    return sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))


def all_strides(t):
    """(batch, channel, D, H, W), 0 where there is one element only."""
    strides = [stride if size > 1 else 0 for size, stride in zip(t.shape, t.stride(), strict=True)]
    return (*strides[:2], *three(strides[2:], 0))


def counted(strides, unit):
    return (strides[0] // unit, strides[1], *(s // unit for s in strides[2:]))


def pixel_stride(t):
    """The one stride between pixels counted in order, or None where there is no such stride."""
    step = span = None
    for size, stride in zip(reversed(t.shape[2:]), reversed(t.stride()[2:]), strict=True):
        if size == 1:
            continue
        if span not in (None, stride):
            return None
        step = stride if step is None else step
        span = stride * size
    return 0 if step is None else step


@functools.cache
def common_and_inverse(dilation, stride):
    """(g, i): the greatest common divisor g, and i with ``i dilation / g = 1`` modulo ``stride / g``."""
    g = math.gcd(dilation, stride)
    return g, pow(dilation // g, -1, stride // g)
