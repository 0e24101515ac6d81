"""The gradient of the filtered convolution for its input; formulas in ops/conv.py, conventions in conv.py."""

import triton
import triton.language as tl

from .conv_gather import coordinates, indices, offset, reached, split_rows, steps_of, term, unravel


@triton.jit
def residue_taps(residue, KERNEL, STRIDE, PADDING, DILATION, COMMON, INVERSE):
    """Which taps reach the input pixels ``i = STRIDE q + residue``, in one dimension: (first, count, at).

    They are ``first + j STEP``, j < count, with ``STEP = STRIDE / COMMON`` and COMMON the greatest common divisor of STRIDE and
    DILATION; tap j reaches i from the output pixel ``q + at - j DILATION / COMMON``. INVERSE: of DILATION / COMMON, modulo STEP.
    """
    phase = (residue + PADDING) % STRIDE
    first = phase // COMMON * INVERSE % (STRIDE // COMMON)
    count = tl.cdiv(tl.maximum(KERNEL - first, 0), STRIDE // COMMON)
    count = tl.where(phase % COMMON == 0, count, 0)
    return first, count, (residue + PADDING) // STRIDE + (phase - first * DILATION) // STRIDE


@triton.jit
def conv_backward_input_kernel(
    grad,  # (batch, groups * features, *out_size)
    out,  # as grad, or anything where not RELU
    weight,  # (groups * features, channels, *KERNEL)
    theta,  # (groups * features,)
    dx,  # (batch, groups * channels, *x_size)
    batch,
    groups,
    channels,
    features,
    x_size,
    out_size,
    grad_strides,  # (batch, channel, pixel)
    out_strides,  # as grad_strides
    weight_strides,
    dx_strides,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    DILATION: tl.constexpr,
    COMMON: tl.constexpr,
    INVERSE: tl.constexpr,
    DIMS: tl.constexpr,
    WIDE: tl.constexpr,
    UNIT: tl.constexpr,
    RELU: tl.constexpr,
    PRECISION: tl.constexpr,
    FLAT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """``dx = conv_transpose(grad [out > 0] s, weight)``: BLOCK_M input pixels by BLOCK_K channels of one group.

    A program takes pixels of one residue modulo STRIDE, since these meet the same taps: no product is with a gap's zero.
    """
    INDEX: tl.constexpr = tl.int64 if WIDE else tl.int32
    channels, features = channels * UNIT, features * UNIT
    tiles_k = tl.cdiv(channels, BLOCK_K)
    c = indices(tl.program_id(0) % tiles_k, BLOCK_K)
    group = tl.program_id(0) // tiles_k % groups
    tile = tl.program_id(0) // (tiles_k * groups)
    rd, rh, rw = unravel(tile % (STRIDE[0] * STRIDE[1] * STRIDE[2]), STRIDE)
    tile = tile // (STRIDE[0] * STRIDE[1] * STRIDE[2])
    first_d, count_d, at_d = residue_taps(rd, KERNEL[0], STRIDE[0], PADDING[0], DILATION[0], COMMON[0], INVERSE[0])
    first_h, count_h, at_h = residue_taps(rh, KERNEL[1], STRIDE[1], PADDING[1], DILATION[1], COMMON[1], INVERSE[1])
    first_w, count_w, at_w = residue_taps(rw, KERNEL[2], STRIDE[2], PADDING[2], DILATION[2], COMMON[2], INVERSE[2])
    coarse = (tl.cdiv(x_size[0], STRIDE[0]), tl.cdiv(x_size[1], STRIDE[1]), tl.cdiv(x_size[2], STRIDE[2]))
    image, pixel = split_rows(tile.to(tl.int64) * BLOCK_M, coarse, BLOCK_M, INDEX)
    qd, qh, qw = coordinates(pixel, coarse, DIMS)
    exists = image < batch
    d, h, w = qd + at_d, qh + at_h, qw + at_w
    origin = (tl.cast(d, INDEX) * out_size[1] + h) * out_size[2] + w
    grad_rows = (image * grad_strides[0] + origin * grad_strides[2]) * UNIT
    out_rows = (image * out_strides[0] + origin * out_strides[2]) * UNIT
    known = c < channels
    weight_rows = c.to(INDEX) * weight_strides[1]
    total = tl.zeros((BLOCK_M, BLOCK_K), tl.float32)
    taps = count_d * count_h * count_w
    for step in range(steps_of(features, taps, BLOCK_N, FLAT)):
        tap, n, inside = term(step, features, taps, BLOCK_N, FLAT)
        jd, jh, jw = unravel(tap, (count_d, count_h, count_w))
        kd = first_d + jd * (STRIDE[0] // COMMON[0])
        kh = first_h + jh * (STRIDE[1] // COMMON[1])
        kw = first_w + jw * (STRIDE[2] // COMMON[2])
        jd = jd * (-DILATION[0] // COMMON[0])
        jh = jh * (-DILATION[1] // COMMON[1])
        jw = jw * (-DILATION[2] // COMMON[2])
        n = (group * features + n).to(INDEX)
        scale = tl.load(theta + n, mask=inside, other=0.0).to(tl.float32)
        alive = inside & ((scale > 0) | (scale != scale))  # a NaN is not dead
        wanted = reached(d, h, w, jd, jh, jw, out_size, DIMS, FLAT) & exists[:, None] & inside[None, :]
        moved = (tl.cast(jd, INDEX) * out_size[1] + jh) * out_size[2] + jw
        at = grad_rows[:, None] + (n * grad_strides[1] + moved * grad_strides[2] * UNIT)[None, :]
        g = tl.load(grad + at, mask=wanted, other=0.0)
        if RELU:
            at = out_rows[:, None] + (n * out_strides[1] + moved * out_strides[2] * UNIT)[None, :]
            o = tl.load(out + at, mask=wanted, other=0.0)
            g = tl.where(o <= 0, 0.0, g)
        # Dead features' weights are not read, since 0 * NaN is NaN.
        weight_terms = (n * weight_strides[0] + offset(kd, kh, kw, weight_strides, INDEX)) * UNIT
        at = weight_terms[:, None] + weight_rows[None, :]
        b = tl.load(weight + at, mask=alive[:, None] & known[None, :], other=0.0)
        # Selected after the load, since a mask that differs along a row would make 2-byte loads of 16-byte ones.
        g = tl.where(alive[None, :], g.to(tl.float32) * scale[None, :], 0.0).to(dx.dtype.element_ty)
        total = tl.dot(g, b.to(g.dtype), total, input_precision=PRECISION)
    d, h, w = qd * STRIDE[0] + rd, qh * STRIDE[1] + rh, qw * STRIDE[2] + rw
    exists = exists & (d < x_size[0]) & (h < x_size[1]) & (w < x_size[2])
    rows = (image * dx_strides[0] + offset(d, h, w, dx_strides, INDEX)) * UNIT
    columns = (group * channels + c).to(INDEX) * dx_strides[1]
    stored = exists[:, None] & known[None, :]
    tl.store(dx + (rows[:, None] + columns[None, :]), total.to(dx.dtype.element_ty), mask=stored)
