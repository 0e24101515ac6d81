"""Pooling: each channel on its own; zero in, zero out (padding is zero or minus infinity, which never wins)."""

from __future__ import annotations

from collections.abc import Callable

from ..op import Op, Result
from .registry import named, register_rule
from .zeros import carried


def pooling(spatial: int) -> Callable[[Op], Result]:
    def rule(op: Op) -> Result:
        x = op.inputs[0]
        keep = x.ndim - spatial
        axes = op.axes(x)[:keep] + [None] * spatial
        for axis in op.axes(x)[keep:]:
            op.pin(axis, f"is a spatial axis of {op.label}")
        if op.several:
            zero = carried([x], axes)
            return op.outputs([axes, axes], lambda zeros: [zero(zeros), [None] * len(axes)])
        return op.output(axes, carried([x], axes))

    return rule


for n in (1, 2, 3):
    names = (f"max_pool{n}d", f"max_pool{n}d_with_indices", f"avg_pool{n}d", f"lp_pool{n}d")
    adaptive = (f"adaptive_avg_pool{n}d", f"_adaptive_avg_pool{n}d", f"adaptive_max_pool{n}d")
    register_rule(*named(*names, *adaptive))(pooling(n))
