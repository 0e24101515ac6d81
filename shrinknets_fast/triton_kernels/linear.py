"""The filtered linear layer on the device; the formulas stand in ops/linear.py.

M is the rows of x, K its columns, N the features. Matrices come with any strides, outputs and vectors are contiguous. Weight,
bias and theta may be wider than x: each is converted where it is loaded. PRECISION says how float32 tiles multiply: "ieee" or
"tf32". Sums are float32, in an order that the shapes fix.

N, K and the strides of rows are counted in units of UNIT elements: more than 1 says that rows can be read 16 bytes at a time,
for a width of 8 too, where Triton itself looks for multiples of 16. A tile's corner is found in 64 bits; inside the tile 32
bits do unless strides are WIDE, which halves the registers that offsets take.
"""

import triton
import triton.language as tl

# Triton would compile anew for multiples of 16; UNIT says all that is worth a kernel of its own, and shrinking changes sizes.
SIZES = ["M", "N", "K", "x_m", "weight_n", "grad_m"]


@triton.jit
def tile_of(tiles_0, tiles_1):
    """This program's tile. Eight tile rows go side by side, so that what they share stays in the L2 cache."""
    pid = tl.program_id(0)
    group = pid // (8 * tiles_1)
    height = tl.minimum(tiles_0 - group * 8, 8)
    inside = pid % (8 * tiles_1)
    return group * 8 + inside % height, inside // height


@triton.jit
def moved(pointer, count, stride):
    """``pointer + count * stride`` in 64 bits."""
    return pointer + (tl.full((), 0, tl.int64) + count) * stride


@triton.jit
def grid(rows, row_stride, columns, column_stride, WIDE: tl.constexpr):
    """Offsets of a tile's elements from its corner."""
    if WIDE:
        rows, columns = rows.to(tl.int64), columns.to(tl.int64)
    return rows[:, None] * row_stride + columns[None, :] * column_stride


@triton.jit(do_not_specialize=SIZES)
def linear_kernel(
    x,  # (M, K)
    weight,  # (N, K)
    bias,  # (N,), or anything where not HAS_BIAS
    theta,  # (N,)
    out,  # (M, N)
    M,
    N,
    K,
    x_m,
    x_k,
    weight_n,
    weight_k,
    HAS_BIAS: tl.constexpr,
    RELU: tl.constexpr,
    PRECISION: tl.constexpr,
    UNIT: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """``out = act((x weight^T + bias) * s)``, one tile of it."""
    N, K, x_m, weight_n = N * UNIT, K * UNIT, x_m * UNIT, weight_n * UNIT
    tile_m, tile_n = tile_of(tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N))
    first_m, first_n = tile_m * BLOCK_M, tile_n * BLOCK_N
    m, n, k = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    has_m, has_n = m < M - first_m, n < N - first_n
    x, weight = moved(x, first_m, x_m), moved(weight, first_n, weight_n)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        has_k = k < K - start
        a = tl.load(x + grid(m, x_m, k, x_k, WIDE), mask=has_m[:, None] & has_k[None, :], other=0.0)
        b = tl.load(weight + grid(k, weight_k, n, weight_n, WIDE), mask=has_k[:, None] & has_n[None, :], other=0.0)
        total = tl.dot(a, b.to(a.dtype), total, input_precision=PRECISION)
        x, weight = moved(x, BLOCK_K, x_k), moved(weight, BLOCK_K, weight_k)
    if HAS_BIAS:
        total += tl.load(bias + first_n + n, mask=has_n, other=0.0).to(tl.float32)[None, :]
    scale = tl.load(theta + first_n + n, mask=has_n, other=0.0).to(tl.float32)
    total = tl.where((scale <= 0)[None, :], 0.0, total * scale[None, :])
    if RELU:
        total = tl.where(total <= 0, 0.0, total)  # a NaN stays
    out = moved(out, first_m, N) + first_n
    tl.store(out + grid(m, N, n, 1, WIDE), total.to(out.dtype.element_ty), mask=has_m[:, None] & has_n[None, :])


@triton.jit(do_not_specialize=SIZES)
def linear_backward_input_kernel(
    grad,  # (M, N)
    out,  # (M, N), or anything where not RELU
    weight,  # (N, K)
    theta,  # (N,)
    dx,  # (M, K)
    M,
    N,
    K,
    grad_m,
    grad_n,
    weight_n,
    weight_k,
    RELU: tl.constexpr,
    PRECISION: tl.constexpr,
    UNIT: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """``dx = (grad [out > 0] s) weight``, one tile of it; scale and mask are applied as grad is loaded."""
    N, K, grad_m, weight_n = N * UNIT, K * UNIT, grad_m * UNIT, weight_n * UNIT
    tile_m, tile_k = tile_of(tl.cdiv(M, BLOCK_M), tl.cdiv(K, BLOCK_K))
    first_m, first_k = tile_m * BLOCK_M, tile_k * BLOCK_K
    m, n, k = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    has_m, has_k = m < M - first_m, k < K - first_k
    grad, out, weight = moved(grad, first_m, grad_m), moved(out, first_m, N), moved(weight, first_k, weight_k)
    total = tl.zeros((BLOCK_M, BLOCK_K), tl.float32)
    for start in range(0, N, BLOCK_N):
        scale = tl.load(theta + n, mask=n < N - start, other=0.0).to(tl.float32)
        alive = (scale > 0) | (scale != scale)  # a NaN is not dead
        scale = tl.where(alive, scale, 0.0)  # of -inf too
        wanted = has_m[:, None] & alive[None, :]
        g = tl.load(grad + grid(m, grad_m, n, grad_n, WIDE), mask=wanted, other=0.0)
        if RELU:
            g = tl.where(tl.load(out + grid(m, N, n, 1, WIDE), mask=wanted, other=0.0).to(tl.float32) <= 0, 0.0, g)
        g = (g.to(tl.float32) * scale[None, :]).to(dx.dtype.element_ty)
        # Dead rows are not read, since 0 * NaN is NaN.
        w = tl.load(weight + grid(n, weight_n, k, weight_k, WIDE), mask=alive[:, None] & has_k[None, :], other=0.0)
        total = tl.dot(g, w.to(g.dtype), total, input_precision=PRECISION)
        grad, weight = moved(grad, BLOCK_N, grad_n), moved(weight, BLOCK_N, weight_n)
        out += BLOCK_N
        theta += BLOCK_N
    dx = moved(dx, first_m, K) + first_k
    tl.store(dx + grid(m, K, k, 1, WIDE), total.to(dx.dtype.element_ty), mask=has_m[:, None] & has_k[None, :])


@triton.jit(do_not_specialize=SIZES)
def linear_backward_weight_kernel(
    grad,  # (M, N)
    out,  # (M, N), or anything where not RELU
    x,  # (M, K)
    weight,  # (N, K)
    bias,  # (N,), or anything where not HAS_BIAS
    theta,  # (N,)
    dweight,  # (N, K)
    dbias,  # (N,), as bias
    dtheta,  # (blocks of K, N): to be summed over the first
    M,
    N,
    K,
    grad_m,
    grad_n,
    x_m,
    x_k,
    weight_n,
    weight_k,
    HAS_BIAS: tl.constexpr,
    RELU: tl.constexpr,
    PRECISION: tl.constexpr,
    UNIT: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """With ``G = (grad [out > 0])^T x`` and ``g`` the sum of grad's rows: ``dweight = s G``, ``dbias = s g`` and
    ``dtheta = [theta > 0] (<G, weight> + g bias)``, one tile of G, which never leaves the registers.

    A tile has some columns of G, so each adds a row of dtheta. One program that loops over all of them would spill.
    """
    N, K, grad_m, x_m, weight_n = N * UNIT, K * UNIT, grad_m * UNIT, x_m * UNIT, weight_n * UNIT
    tile_n, tile_k = tile_of(tl.cdiv(N, BLOCK_N), tl.maximum(tl.cdiv(K, BLOCK_K), 1))
    first_n, first_k = tile_n * BLOCK_N, tile_k * BLOCK_K
    m, n, k = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    has_n, has_k = n < N - first_n, k < K - first_k
    grad, out, x = moved(grad, first_n, grad_n), out + first_n, moved(x, first_k, x_k)
    total = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    g_sum = tl.zeros((BLOCK_N,), tl.float32)
    for start in range(0, M, BLOCK_M):
        has_m = m < M - start
        wanted = has_n[:, None] & has_m[None, :]
        g = tl.load(grad + grid(n, grad_n, m, grad_m, WIDE), mask=wanted, other=0.0)
        if RELU:
            g = tl.where(tl.load(out + grid(n, 1, m, N, WIDE), mask=wanted, other=0.0).to(tl.float32) <= 0, 0.0, g)
        if HAS_BIAS:
            if tile_k == 0:
                g_sum += tl.sum(g.to(tl.float32), 1)
        b = tl.load(x + grid(m, x_m, k, x_k, WIDE), mask=has_m[:, None] & has_k[None, :], other=0.0)
        total = tl.dot(g.to(b.dtype), b, total, input_precision=PRECISION)
        grad, out, x = moved(grad, BLOCK_M, grad_m), moved(out, BLOCK_M, N), moved(x, BLOCK_M, x_m)
    scale = tl.load(theta + first_n + n, mask=has_n, other=0.0).to(tl.float32)
    stored = has_n[:, None] & has_k[None, :]
    weight = moved(moved(weight, first_n, weight_n), first_k, weight_k)
    w = tl.load(weight + grid(n, weight_n, k, weight_k, WIDE), mask=stored, other=0.0)
    dot = tl.sum(tl.where(stored, total * w.to(tl.float32), 0.0), 1)
    total = tl.where((scale <= 0)[:, None], 0.0, total * scale[:, None])
    dweight = moved(dweight, first_n, K) + first_k
    tl.store(dweight + grid(n, K, k, 1, WIDE), total.to(dweight.dtype.element_ty), mask=stored)
    if HAS_BIAS:
        if tile_k == 0:
            dot += g_sum * tl.load(bias + first_n + n, mask=has_n, other=0.0).to(tl.float32)
            g_sum = tl.where(scale <= 0, 0.0, g_sum * scale)
            tl.store(dbias + first_n + n, g_sum.to(dbias.dtype.element_ty), mask=has_n)
    dot = tl.where(scale <= 0, 0.0, dot)
    tl.store(moved(dtheta, tile_k, N) + first_n + n, dot.to(dtheta.dtype.element_ty), mask=has_n)
