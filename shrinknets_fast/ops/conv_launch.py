"""What the host does for the convolution kernels: sizes and strides in the form they take, blocks, outputs, launches."""

import functools
import math

import torch

from ..triton_kernels import conv_blocks as blocks


def three(values, missing):
    """As (D, H, W), whatever dimensions are in use."""
    return (missing,) * (3 - len(values)) + tuple(values)


def all_strides(t):
    return (*t.stride()[:2], *three(t.stride()[2:], 0))


def pixel_stride(t):
    """The one stride between pixels counted in order, or None where there is no such stride."""
    step = None
    for size, stride in zip(reversed(t.shape[2:]), reversed(t.stride()[2:]), strict=True):
        if size != 1 and step is None:
            step = span = stride
        if size != 1 and stride != span:
            return None
        if size != 1:
            span = stride * size
    return 1 if step is None else step


def few_strides(t):
    return (*t.stride()[:2], pixel_stride(t))


def precision(x):
    """How products are formed: (row of the table of blocks, Triton's name for it)."""
    if x.dtype != torch.float32:
        return "half", "ieee"
    return ("tf32", "tf32") if torch.backends.cudnn.allow_tf32 else ("ieee", "ieee")


@functools.cache
def inverse(dilation, stride):
    """(g, i): the greatest common divisor g, and i with ``i dilation / g = 1`` modulo ``stride / g``."""
    g = math.gcd(dilation, stride)
    return g, pow(dilation // g, -1, stride // g)


class Launch:
    """What the kernels of one convolution have in common."""

    def __init__(self, x, weight, stride, padding, dilation, groups, relu):
        self.batch, self.groups = x.shape[0], groups
        self.channels, self.features = weight.shape[1], weight.shape[0] // groups
        self.x_size = three(x.shape[2:], 1)
        self.weight, self.device = weight, x.device
        self.products, name = precision(x)
        self.constants = {
            "KERNEL": three(weight.shape[2:], 1),
            "STRIDE": three(stride, 1),
            "PADDING": three(padding, 0),
            "DILATION": three(dilation, 1),
            "DIMS": len(stride),
            "RELU": relu,
            "PRECISION": name,
        }
        self.taps = math.prod(weight.shape[2:])

    def sizes(self, out):
        return self.batch, self.groups, self.channels, self.features, self.x_size, three(out.shape[2:], 1)

    def blocks(self, kernel, programs):
        return blocks.launch_options(blocks.blocks_for(kernel, self.products, programs))

    def run(self, kernel, programs, *args, **options):
        with torch.cuda.device_of(self.weight):
            kernel[(programs,)](*args, **options)


def conv_launch(out, x, weight, bias, theta, *options):
    from ..triton_kernels.conv import conv_kernel

    launch = Launch(x, weight, *options)
    pixels = out.numel() // weight.shape[0]

    def programs(m, n, k):
        return blocks.tiles(pixels, m) * launch.groups * blocks.tiles(launch.features, n)

    chosen = launch.blocks("conv", programs)
    launch.run(
        conv_kernel,
        programs(chosen["BLOCK_M"], chosen["BLOCK_N"], chosen["BLOCK_K"]),
        x,
        weight,
        theta if bias is None else bias,
        theta,
        out,
        *launch.sizes(out),
        all_strides(x),
        all_strides(weight),
        few_strides(out),
        HAS_BIAS=bias is not None,
        FLAT=blocks.flat(launch.channels, launch.taps, chosen["BLOCK_K"]),
        **launch.constants,
        **chosen,
    )


def conv_backward_input_launch(dx, grad, out, weight, theta, *options):
    from ..triton_kernels.conv_backward_input import conv_backward_input_kernel

    launch = Launch(dx, weight, *options)
    strides = launch.constants["STRIDE"]
    pixels = launch.batch * math.prod(blocks.tiles(i, s) for i, s in zip(launch.x_size, strides, strict=True))

    def programs(m, n, k):
        return blocks.tiles(pixels, m) * math.prod(strides) * launch.groups * blocks.tiles(launch.channels, k)

    chosen = launch.blocks("conv_backward_input", programs)
    common = [inverse(d, s) for d, s in zip(launch.constants["DILATION"], strides, strict=True)]
    out = grad if out is None else out
    launch.run(
        conv_backward_input_kernel,
        programs(chosen["BLOCK_M"], chosen["BLOCK_N"], chosen["BLOCK_K"]),
        grad,
        out,
        weight,
        theta,
        dx,
        *launch.sizes(grad),
        few_strides(grad),
        few_strides(out),
        all_strides(weight),
        all_strides(dx),
        COMMON=tuple(g for g, _ in common),
        INVERSE=tuple(i for _, i in common),
        FLAT=blocks.flat(launch.features, launch.taps, chosen["BLOCK_N"]),
        **launch.constants,
        **chosen,
    )


def conv_backward_weight_launch(dweight, dbias, dtheta, grad, out, x, weight, bias, theta, *options):
    from ..triton_kernels.conv_backward_weight import conv_backward_finish_kernel, conv_backward_weight_kernel

    launch = Launch(x, weight, *options)
    pixels = grad.numel() // weight.shape[0]

    def programs(m, n, k):
        if blocks.flat(launch.channels, launch.taps, k):
            columns = blocks.tiles(launch.channels * launch.taps, k)
        else:
            columns = launch.taps * blocks.tiles(launch.channels, k)
        return launch.groups * blocks.tiles(launch.features, n) * columns

    chosen = launch.blocks("conv_backward_weight", programs)
    each = programs(chosen["BLOCK_M"], chosen["BLOCK_N"], chosen["BLOCK_K"])
    rows = blocks.rows_of_a_part(pixels, each, chosen["BLOCK_M"])
    parts = blocks.tiles(pixels, rows)
    sums = x.new_empty((parts, weight.shape[0], launch.taps * launch.channels), dtype=torch.float32)
    bias_sums = sums if bias is None else x.new_empty((parts, weight.shape[0]), dtype=torch.float32)
    out = grad if out is None else out
    launch.run(
        conv_backward_weight_kernel,
        parts * each,
        grad,
        out,
        x,
        sums,
        bias_sums,
        *launch.sizes(grad)[:4],
        rows,
        *launch.sizes(grad)[4:],
        few_strides(grad),
        few_strides(out),
        all_strides(x),
        HAS_BIAS=bias is not None,
        FLAT=blocks.flat(launch.channels, launch.taps, chosen["BLOCK_K"]),
        **launch.constants,
        **chosen,
    )
    launch.run(
        conv_backward_finish_kernel,
        weight.shape[0],
        sums,
        bias_sums,
        weight,
        theta if bias is None else bias,
        theta,
        dweight,
        dbias,
        dtheta,
        parts,
        launch.channels,
        weight.shape[0],
        all_strides(weight),
        all_strides(dweight),
        KERNEL=launch.constants["KERNEL"],
        HAS_BIAS=bias is not None,
        **blocks.FINISH,
    )
