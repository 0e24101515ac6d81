"""Layer and RMS norm over the alive features on the device; the formulas stand in ops/layer_norm.py.

A row of N values lies without gaps. A dead feature (theta <= 0) is never read, so it may hold anything. Sums are float32, in an
order that the shapes fix.
"""

import triton
import triton.language as tl


@triton.jit
def living(theta, k, N):
    """(theta, whether it is alive) of the features k; a NaN is not dead."""
    scale = tl.load(theta + k, mask=k < N, other=0.0).to(tl.float32)
    return scale, (scale > 0) | (scale != scale)


@triton.jit(do_not_specialize=["N"])
def layer_norm_kernel(
    x,  # (rows, N)
    weight,  # (N,), or anything where not HAS_WEIGHT
    bias,  # (N,), or anything where not HAS_BIAS
    theta,  # (N,)
    y,  # (rows, N)
    mean,  # (rows,), or anything where RMS
    rstd,  # (rows,)
    N,
    eps,
    RMS: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``y = ((x - mean) rstd weight + bias) s``, one row of it."""
    row = tl.program_id(0).to(tl.int64)
    x, y = x + row * N, y + row * N
    places = tl.arange(0, BLOCK)
    count, total = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for start in range(0, N, BLOCK):
        _, alive = living(theta, start + places, N)
        count += alive.to(tl.float32)
        if not RMS:
            total += tl.load(x + start + places, mask=alive, other=0.0).to(tl.float32)
    n = tl.maximum(tl.sum(count, 0), 1.0)
    m = tl.sum(total, 0) / n
    squares = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, N, BLOCK):
        _, alive = living(theta, start + places, N)
        centred = tl.where(alive, tl.load(x + start + places, mask=alive, other=0.0).to(tl.float32) - m, 0.0)
        squares += centred * centred
    r = 1 / tl.sqrt(tl.sum(squares, 0) / n + eps)
    for start in range(0, N, BLOCK):
        k = start + places
        scale, alive = living(theta, k, N)
        value = (tl.load(x + k, mask=alive, other=0.0).to(tl.float32) - m) * r
        if HAS_WEIGHT:
            value *= tl.load(weight + k, mask=alive, other=0.0).to(tl.float32)
        if HAS_BIAS:
            value += tl.load(bias + k, mask=alive, other=0.0).to(tl.float32)
        tl.store(y + k, tl.where(alive, value * scale, 0.0).to(y.dtype.element_ty), mask=k < N)
    if not RMS:
        tl.store(mean + row, m)
    tl.store(rstd + row, r)


@triton.jit
def upstream(grad, weight, theta, k, N, HAS_WEIGHT: tl.constexpr):
    """(h, whether it is alive) of the features k."""
    scale, alive = living(theta, k, N)
    h = tl.load(grad + k, mask=alive, other=0.0).to(tl.float32) * tl.where(alive, scale, 0.0)
    if HAS_WEIGHT:
        h *= tl.load(weight + k, mask=alive, other=0.0).to(tl.float32)
    return h, alive


@triton.jit(do_not_specialize=["N"])
def layer_norm_backward_input_kernel(
    grad,  # (rows, N)
    x,  # (rows, N)
    mean,  # (rows,), or anything where RMS
    rstd,  # (rows,)
    weight,  # (N,), or anything where not HAS_WEIGHT
    theta,  # (N,)
    dx,  # (rows, N)
    N,
    RMS: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``dx = rstd (h - mean(h) - xhat mean(h xhat))`` with ``h = grad s weight``, one row of it."""
    row = tl.program_id(0).to(tl.int64)
    grad, x, dx = grad + row * N, x + row * N, dx + row * N
    r = tl.load(rstd + row)
    m = 0.0
    if not RMS:
        m = tl.load(mean + row)
    places = tl.arange(0, BLOCK)
    count, firsts, seconds = (
        tl.zeros((BLOCK,), tl.float32),
        tl.zeros((BLOCK,), tl.float32),
        tl.zeros((BLOCK,), tl.float32),
    )
    for start in range(0, N, BLOCK):
        h, alive = upstream(grad, weight, theta, start + places, N, HAS_WEIGHT)
        xhat = (tl.load(x + start + places, mask=alive, other=0.0).to(tl.float32) - m) * r
        count += alive.to(tl.float32)
        firsts += h
        seconds += tl.where(alive, h * xhat, 0.0)
    n = tl.maximum(tl.sum(count, 0), 1.0)
    first, second = tl.sum(firsts, 0) / n, tl.sum(seconds, 0) / n
    if RMS:
        first = 0.0
    for start in range(0, N, BLOCK):
        h, alive = upstream(grad, weight, theta, start + places, N, HAS_WEIGHT)
        xhat = (tl.load(x + start + places, mask=alive, other=0.0).to(tl.float32) - m) * r
        value = tl.where(alive, r * (h - first - xhat * second), 0.0)
        tl.store(dx + start + places, value.to(dx.dtype.element_ty), mask=start + places < N)


@triton.jit(do_not_specialize=["rows", "N", "part_rows"])
def layer_norm_backward_weight_kernel(
    grad,  # (rows, N)
    x,  # (rows, N)
    mean,  # (rows,), or anything where RMS
    rstd,  # (rows,)
    theta,  # (N,)
    sums,  # (parts, 2, N), float32
    rows,
    N,
    part_rows,
    RMS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The sums of grad xhat and of grad over one part's rows, of some features; those of dead ones are 0."""
    part = tl.program_id(1).to(tl.int64)
    k = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    _, alive = living(theta, k, N)
    weights, biases = tl.zeros((BLOCK_M, BLOCK_N), tl.float32), tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, part_rows, BLOCK_M):
        inside = start + tl.arange(0, BLOCK_M)
        row = part * part_rows + inside
        has = (inside < part_rows) & (row < rows)
        wanted = has[:, None] & alive[None, :]
        at = row[:, None] * N + k[None, :]
        g = tl.load(grad + at, mask=wanted, other=0.0).to(tl.float32)
        xhat = tl.load(x + at, mask=wanted, other=0.0).to(tl.float32)
        if not RMS:
            xhat -= tl.load(mean + row, mask=has, other=0.0)[:, None]
        xhat *= tl.load(rstd + row, mask=has, other=0.0)[:, None]
        weights += tl.where(wanted, g * xhat, 0.0)
        biases += g
    sums += part * 2 * N
    tl.store(sums + k, tl.sum(weights, 0), mask=k < N)
    tl.store(sums + N + k, tl.sum(biases, 0), mask=k < N)
