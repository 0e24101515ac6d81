"""The gradients of the filtered convolution for its parameters; formulas in ops/conv.py, conventions in conv.py."""

import triton
import triton.language as tl

from .conv_gather import coordinates, indices, offset, reached, steps_of, term, unravel


@triton.jit
def conv_backward_weight_kernel(
    grad,  # (batch, groups * features, *out_size)
    out,  # as grad, or anything where not RELU
    x,  # (batch, groups * channels, *x_size)
    sums,  # (SPLIT, groups * features, taps * channels), float32
    bias_sums,  # (SPLIT, groups * features), float32, or anything where not HAS_BIAS
    batch,
    groups,
    channels,
    features,
    rows,  # how many pixels each of the SPLIT parts has; a multiple of BLOCK_M
    x_size,
    out_size,
    grad_strides,  # (batch, channel, pixel)
    out_strides,  # as grad_strides
    x_strides,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    DILATION: tl.constexpr,
    DIMS: tl.constexpr,
    WIDE: tl.constexpr,
    UNIT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    RELU: tl.constexpr,
    PRECISION: tl.constexpr,
    FLAT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Part of ``G = (grad [out > 0])^T gathered(x)`` and of ``g``, the sum of grad: one part of the pixels each, not yet scaled.

    The tiles of G are too few to fill a device (64 x 576: 10), so the pixels are split too; conv_backward_finish_kernel adds up.
    """
    INDEX: tl.constexpr = tl.int64 if WIDE else tl.int32
    channels, features = channels * UNIT, features * UNIT
    taps = KERNEL[0] * KERNEL[1] * KERNEL[2]
    tiles_k = steps_of(channels, taps, BLOCK_K, FLAT)
    tiles_n = tl.cdiv(features, BLOCK_N)
    tile_k = tl.program_id(0) % tiles_k
    n = indices(tl.program_id(0) // tiles_k % tiles_n, BLOCK_N)
    group = tl.program_id(0) // (tiles_k * tiles_n) % groups
    part = (tl.program_id(0) // (tiles_k * tiles_n * groups)).to(tl.int64)
    tap, c, inside = term(tile_k, channels, taps, BLOCK_K, FLAT)
    kd, kh, kw = unravel(tap, KERNEL)
    kd, kh, kw = kd * DILATION[0] - PADDING[0], kh * DILATION[1] - PADDING[1], kw * DILATION[2] - PADDING[2]
    known = n < features
    feature = (group * features + n).to(INDEX)
    channel = (group * channels + c).to(INDEX)
    x_columns = channel * x_strides[1] + offset(kd, kh, kw, x_strides, INDEX) * UNIT
    grad_rows = feature * grad_strides[1]
    out_rows = feature * out_strides[1]
    image = out_size[0] * out_size[1] * out_size[2]
    first_image, first_row = part * rows // image, (part * rows % image).to(tl.int32)
    total = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    g_sum = tl.zeros((BLOCK_N,), tl.float32)
    for start in range(0, rows, BLOCK_M):
        row = first_row + start + tl.arange(0, BLOCK_M)
        b, pixel = (first_image + row // image).to(INDEX), row % image
        d, h, w = coordinates(pixel, out_size, DIMS)
        d, h, w = d * STRIDE[0], h * STRIDE[1], w * STRIDE[2]
        wanted = known[:, None] & (b < batch)[None, :]
        pixel = pixel.to(INDEX)
        at = (b * grad_strides[0] + pixel * grad_strides[2]) * UNIT
        g = tl.load(grad + (grad_rows[:, None] + at[None, :]), mask=wanted, other=0.0)
        if RELU:
            at = (b * out_strides[0] + pixel * out_strides[2]) * UNIT
            o = tl.load(out + (out_rows[:, None] + at[None, :]), mask=wanted, other=0.0)
            g = tl.where(o <= 0, 0.0, g)
        there = reached(d, h, w, kd, kh, kw, x_size, DIMS, FLAT) & (b < batch)[:, None] & inside[None, :]
        x_rows = (b * x_strides[0] + offset(d, h, w, x_strides, INDEX)) * UNIT
        a = tl.load(x + (x_rows[:, None] + x_columns[None, :]), mask=there, other=0.0)
        if HAS_BIAS:
            if tile_k == 0:
                g_sum += tl.sum(g.to(tl.float32), 1)
        total = tl.dot(g.to(a.dtype), a, total, input_precision=PRECISION)
    columns = tap * channels + c
    width = tl.cast(taps * channels, INDEX)
    feature += part.to(INDEX) * (groups * features)
    stored = known[:, None] & inside[None, :]
    tl.store(sums + ((feature * width)[:, None] + columns[None, :]), total, mask=stored)
    if HAS_BIAS:
        if tile_k == 0:
            tl.store(bias_sums + feature, g_sum, mask=known)


@triton.jit
def conv_backward_finish_kernel(
    sums,  # (parts, features, taps * channels), float32
    bias_sums,  # (parts, features), float32, or anything where not HAS_BIAS
    weight,  # (features, channels, *KERNEL)
    bias,  # (features,), or anything where not HAS_BIAS
    theta,  # (features,)
    dweight,  # as weight
    dbias,  # as bias
    dtheta,  # (features,)
    parts,
    channels,
    features,  # of all groups
    weight_strides,
    dweight_strides,
    KERNEL: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """``dweight = s G``, ``dbias = s g``, ``dtheta = [theta > 0] (<G, weight> + g bias)`` of one feature.

    G and g are what the parts add up to, in order.
    """
    n = tl.program_id(0).to(tl.int64)
    scale = tl.load(theta + n).to(tl.float32)
    width = tl.cast(KERNEL[0] * KERNEL[1] * KERNEL[2] * channels, tl.int64)
    part = tl.arange(0, BLOCK_P)
    dots = tl.zeros((BLOCK_K,), tl.float32)
    for start in range(0, KERNEL[0] * KERNEL[1] * KERNEL[2] * channels, BLOCK_K):
        column = start + tl.arange(0, BLOCK_K)
        stored = column < width
        total = tl.zeros((BLOCK_P, BLOCK_K), tl.float32)
        for first in range(0, parts, BLOCK_P):
            row = (first + part).to(tl.int64) * features + n
            inside = (first + part < parts)[:, None] & stored[None, :]
            total += tl.load(sums + (row * width)[:, None] + column[None, :], mask=inside, other=0.0)
        total = tl.sum(total, 0)
        kd, kh, kw = unravel(column // channels, KERNEL)
        c = (column % channels).to(tl.int64)
        place = n * weight_strides[0] + c * weight_strides[1] + offset(kd, kh, kw, weight_strides, tl.int64)
        dots += total * tl.load(weight + place, mask=stored, other=0.0).to(tl.float32)
        total = tl.where(scale <= 0, 0.0, total * scale)
        place = n * dweight_strides[0] + c * dweight_strides[1] + offset(kd, kh, kw, dweight_strides, tl.int64)
        tl.store(dweight + place, total.to(dweight.dtype.element_ty), mask=stored)
    dot = tl.sum(dots, 0)
    if HAS_BIAS:
        g_sums = tl.zeros((BLOCK_P,), tl.float32)
        for first in range(0, parts, BLOCK_P):
            row = (first + part).to(tl.int64) * features + n
            g_sums += tl.load(bias_sums + row, mask=first + part < parts, other=0.0)
        g_sum = tl.sum(g_sums, 0)
        dot += g_sum * tl.load(bias + n).to(tl.float32)
        g_sum = tl.where(scale <= 0, 0.0, g_sum * scale)
        tl.store(dbias + n, g_sum.to(dbias.dtype.element_ty))
    dot = tl.where(scale <= 0, 0.0, dot)
    tl.store(dtheta + n, dot.to(dtheta.dtype.element_ty))
