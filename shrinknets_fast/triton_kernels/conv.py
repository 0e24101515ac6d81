"""The filtered convolution on the device, as products of gathered matrices; the formulas stand in ops/conv.py.

Sizes are (D, H, W), and so are KERNEL, STRIDE, PADDING and DILATION; channels and features are those of one group. x and weight
have a stride for each dimension, grad and out have (batch, channel, pixel). UNIT: how many elements are 16 bytes of x, where
everything is in channels-last memory and can be read by so many at once, else 1; channels, features and all strides but
the channels' are counted in UNIT. Weight, bias and theta may be wider than x: each is converted where it is loaded. PRECISION
says how float32 tiles multiply: "ieee" or "tf32". Sums are float32, and in an order that the shapes fix.
"""

import triton
import triton.language as tl

from .conv_gather import coordinates, indices, offset, reached, split_rows, steps_of, term, unravel


@triton.jit
def conv_kernel(
    x,  # (batch, groups * channels, *x_size)
    weight,  # (groups * features, channels, *KERNEL)
    bias,  # (groups * features,), or anything where not HAS_BIAS
    theta,  # (groups * features,)
    out,  # (batch, groups * features, *out_size)
    batch,
    groups,
    channels,
    features,
    x_size,
    out_size,
    x_strides,
    weight_strides,
    out_strides,  # (batch, channel, pixel)
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
    """``out = act((conv(x, weight) + bias) * s)``: BLOCK_M pixels by BLOCK_N features of one group."""
    INDEX: tl.constexpr = tl.int64 if WIDE else tl.int32
    channels, features = channels * UNIT, features * UNIT
    tiles_n = tl.cdiv(features, BLOCK_N)
    n = indices(tl.program_id(0) % tiles_n, BLOCK_N)
    group = tl.program_id(0) // tiles_n % groups
    image, pixel = split_rows((tl.program_id(0) // (tiles_n * groups)).to(tl.int64) * BLOCK_M, out_size, BLOCK_M, INDEX)
    d, h, w = coordinates(pixel, out_size, DIMS)
    d = d * STRIDE[0] - PADDING[0]
    h = h * STRIDE[1] - PADDING[1]
    w = w * STRIDE[2] - PADDING[2]
    exists = image < batch
    known = n < features
    feature = (group * features + n).to(INDEX)
    first_channel = (group * channels).to(INDEX)
    x_rows = (image * x_strides[0] + offset(d, h, w, x_strides, INDEX)) * UNIT + first_channel * x_strides[1]
    weight_rows = feature * weight_strides[0] * UNIT
    taps = KERNEL[0] * KERNEL[1] * KERNEL[2]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(steps_of(channels, taps, BLOCK_K, FLAT)):
        tap, c, inside = term(step, channels, taps, BLOCK_K, FLAT)
        kd, kh, kw = unravel(tap, KERNEL)
        jd, jh, jw = kd * DILATION[0], kh * DILATION[1], kw * DILATION[2]
        c = c.to(INDEX)
        x_terms = c * x_strides[1] + offset(jd, jh, jw, x_strides, INDEX) * UNIT
        weight_terms = c * weight_strides[1] + offset(kd, kh, kw, weight_strides, INDEX) * UNIT
        there = reached(d, h, w, jd, jh, jw, x_size, DIMS, FLAT)
        there = there & exists[:, None] & inside[None, :]
        a = tl.load(x + (x_rows[:, None] + x_terms[None, :]), mask=there, other=0.0)
        at = weight_terms[:, None] + weight_rows[None, :]
        b = tl.load(weight + at, mask=inside[:, None] & known[None, :], other=0.0)
        total = tl.dot(a, b.to(a.dtype), total, input_precision=PRECISION)
    if HAS_BIAS:
        total += tl.load(bias + feature, mask=known, other=0.0).to(tl.float32)[None, :]
    scale = tl.load(theta + feature, mask=known, other=0.0).to(tl.float32)
    total = tl.where((scale <= 0)[None, :], 0.0, total * scale[None, :])
    if RELU:
        total = tl.where(total <= 0, 0.0, total)  # a NaN stays
    rows = (image * out_strides[0] + pixel.to(INDEX) * out_strides[2]) * UNIT
    stored = exists[:, None] & known[None, :]
    at = rows[:, None] + (feature * out_strides[1])[None, :]
    tl.store(out + at, total.to(out.dtype.element_ty), mask=stored)
