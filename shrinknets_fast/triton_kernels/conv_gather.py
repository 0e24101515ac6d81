"""Index arithmetic that the convolution kernels share: three spatial dimensions always, of which the last DIMS are in use.

Pixels are counted in 32 bits: the host sees to it that an image has few enough. Offsets are INDEX: 64 bits only where a tensor
needs them (WIDE), since an element loaded on its own takes a register more for each (conv: 168 or 213).
"""

import triton
import triton.language as tl


@triton.jit
def indices(tile, BLOCK: tl.constexpr):
    return tile * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def split_rows(first, sizes, BLOCK: tl.constexpr, INDEX: tl.constexpr):
    """The image of each of BLOCK rows from ``first`` on, and its pixel in the image."""
    image = sizes[0] * sizes[1] * sizes[2]
    row = (first % image).to(tl.int32) + tl.arange(0, BLOCK)
    return (first // image + row // image).to(INDEX), row % image


@triton.jit
def coordinates(pixel, sizes, DIMS: tl.constexpr):
    """(d, h, w) of pixels; the coordinates that are not in use are 0."""
    w = pixel
    h = tl.zeros_like(pixel)
    d = tl.zeros_like(pixel)
    if DIMS > 1:
        w = pixel % sizes[2]
        h = pixel // sizes[2]
    if DIMS > 2:
        d = h // sizes[1]
        h = h % sizes[1]
    return d, h, w


@triton.jit
def term(step, channels, taps, BLOCK: tl.constexpr, FLAT: tl.constexpr):
    """Taps, channels and which of them exist, for one step of a sum over (tap, channel).

    FLAT: a step takes BLOCK terms over taps, with a division for each; else one tap and BLOCK of its channels.
    """
    if FLAT:
        index = indices(step, BLOCK)
        tap, channel, exists = index // channels, index % channels, index < taps * channels
    else:
        blocks = tl.cdiv(channels, BLOCK)
        tap, channel = step // blocks, indices(step % blocks, BLOCK)
        exists = channel < channels
    return tap, channel, exists


@triton.jit
def steps_of(channels, taps, BLOCK: tl.constexpr, FLAT: tl.constexpr):
    """How many steps ``term`` needs."""
    if FLAT:
        steps = tl.cdiv(channels * taps, BLOCK)
    else:
        steps = tl.cdiv(channels, BLOCK) * taps
    return steps


@triton.jit
def unravel(tap, counts):
    return tap // (counts[1] * counts[2]), tap // counts[2] % counts[1], tap % counts[2]


@triton.jit
def within(place, moves, size, FLAT: tl.constexpr):
    """(rows, taps): whether ``place + moves`` lies in [0, size); one column where all share a tap."""
    if FLAT:
        at = place[:, None] + moves[None, :]
    else:
        at = (place + moves)[:, None]
    return (at >= 0) & (at < size)


@triton.jit
def reached(d, h, w, moves_d, moves_h, moves_w, sizes, DIMS: tl.constexpr, FLAT: tl.constexpr):
    """As ``within``, for all dimensions in use."""
    inside = within(w, moves_w, sizes[2], FLAT)
    if DIMS > 1:
        inside &= within(h, moves_h, sizes[1], FLAT)
    if DIMS > 2:
        inside &= within(d, moves_d, sizes[0], FLAT)
    return inside


@triton.jit
def offset(d, h, w, strides, INDEX: tl.constexpr):
    """In strides' units; strides: (batch, channel, d, h, w)."""
    return tl.cast(d, INDEX) * strides[2] + tl.cast(h, INDEX) * strides[3] + tl.cast(w, INDEX) * strides[4]
