"""Ops on the positions of an image: resampling, padding, and moves between positions and channels."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..features import Axis
from ..op import Op
from ..value import Value
from .registry import named, register_rule
from .zeros import carried

aten = torch.ops.aten


def resampled(spatial: int) -> Callable[[Op], Value]:
    def rule(op: Op) -> Value:
        x = op.inputs[0]
        axes = op.axes(x)[: x.ndim - spatial] + [None] * spatial
        for other in op.inputs:
            for d in range(x.ndim - spatial if other is x else 0, other.ndim):
                op.pin(op.axis(other, d), f"is a spatial axis of {op.label}")
        return op.output(axes, carried([x], axes))

    return rule


for n, modes in {
    1: ("nearest", "_nearest-exact", "linear"),
    2: ("nearest", "_nearest-exact", "bilinear", "bicubic"),
}.items():
    for mode in modes:
        start = "_" if mode.startswith("_") else ""
        register_rule(*named(f"{start}upsample_{mode.removeprefix('_').replace('-', '_')}{n}d"))(resampled(n))
register_rule(*named("upsample_nearest3d", "_upsample_nearest_exact3d", "upsample_trilinear3d"))(resampled(3))
register_rule(*named("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "grid_sampler", "grid_sampler_2d"))(
    resampled(2)
)
register_rule(*named("grid_sampler_3d"))(resampled(3))


@register_rule(*named("pad", "constant_pad_nd"))
def pad(op: Op) -> Value:
    """Zeros stay zeros, unless a constant is added beside them; new positions on a feature axis never leave."""
    x, sizes = op["self"], op["pad"]
    mode, value = op.get("mode", "constant"), op.get("value", 0) or 0
    axes = []
    for d in range(x.ndim):
        back = x.ndim - 1 - d
        before, after = sizes[2 * back : 2 * back + 2] if 2 * back < len(sizes) else (0, 0)
        axes.append(padded_axis(op, op.axis(x, d), before, after, mode))
    return op.output(axes, carried([x], axes) if mode != "constant" or value == 0 else None)


def padded_axis(op: Op, axis: Axis | None, before: int, after: int, mode: str) -> Axis | None:
    if axis is None or (before == 0 and after == 0):
        return axis
    if mode != "constant" or before < 0 or after < 0:
        op.pin(axis, f"is padded by {op.label}")
        return None
    op.doubt(axis)
    sides = [op.pinned(op.fresh_axis(n), f"is padding made by {op.label}") for n in (before, after)]
    return op.joined([(sides[0], before), (axis, len(axis)), (sides[1], after)])


def moved(op: Op, dim: int, change: Callable[[Axis | None], Axis | None]) -> Value:
    """The channels after ``change`` of their axis; the axes behind them are spatial."""
    x = op.inputs[0]
    axes = op.axes(x)[: dim + 1] + [None] * (len(op.shape) - dim - 1)
    for axis in op.axes(x)[dim + 1 :]:
        op.pin(axis, f"is a spatial axis of {op.label}")
    axes[dim] = change(axes[dim])
    return op.output(axes, carried([x], axes))


@register_rule(aten.pixel_shuffle.default)
def pixel_shuffle(op: Op) -> Value:
    """r * r channels become the pixels of one: they leave together."""
    return moved(op, op.inputs[0].ndim - 3, lambda axis: op.tie(axis, op["upscale_factor"] ** 2, True))


@register_rule(aten.pixel_unshuffle.default)
def pixel_unshuffle(op: Op) -> Value:
    return moved(op, op.inputs[0].ndim - 3, lambda axis: op.interleaved(axis, op["downscale_factor"] ** 2))


@register_rule(aten.im2col.default)
def im2col(op: Op) -> Value:
    kernel = op["kernel_size"]
    return moved(op, op.inputs[0].ndim - 3, lambda axis: op.interleaved(axis, kernel[0] * kernel[1]))


@register_rule(aten.col2im.default)
def col2im(op: Op) -> Value:
    kernel = op["kernel_size"]
    return moved(op, op.inputs[0].ndim - 2, lambda axis: op.tie(axis, kernel[0] * kernel[1], True))


@register_rule(*named("channel_shuffle", "native_channel_shuffle"))
def channel_shuffle(op: Op) -> Value:
    """The j-th channels of all groups become neighbours, and leave together."""
    x, groups = op.inputs[0], op["groups"]
    axes = op.axes(x)
    op.tie(axes[1], x.shape[1] // groups)
    axes[1] = op.rearranged(axes[1], lambda ids: ids.reshape(groups, -1).t().reshape(-1))
    return op.output(axes, carried([x], axes))
