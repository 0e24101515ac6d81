"""One rule for every pointwise op: axes meet by broadcasting, and the op itself is asked for f(0)."""

from __future__ import annotations

import itertools
import math

import torch

from ..features import Axis
from ..op import Masks, Op, Result
from ..value import Value, Zeros
from .meeting import broadcast_axes
from .registry import named, register_rule
from .zeros import both, either

aten = torch.ops.aten
PRODUCTS = {"mul", "multiply", "bitwise_and", "logical_and"}
QUOTIENTS = {"div", "divide", "true_divide", "floor_divide"}


def zero_at(value: Value, back: int, size: int, zeros: Zeros) -> torch.Tensor | None:
    """Where ``value`` is zero along the output's dimension ``back`` from the end, of this size."""
    dim = value.ndim - back
    return None if dim < 0 or value.axes[dim] is None or value.shape[dim] != size else zeros(value, dim)


def maps_zero_to_zero(op: Op) -> bool:
    """Whether the op gives exactly 0 for zeros in every tensor argument, whatever its boolean arguments hold."""
    flags = [v for v in op.inputs if v.dtype == torch.bool]
    for bits in itertools.product((False, True), repeat=len(flags)):
        given = dict(zip(map(id, flags), bits, strict=True))
        args = {}
        for name, arg in op.arguments.items():
            if isinstance(arg, Value):
                arg = torch.full((1,), given.get(id(arg), 0), dtype=arg.dtype)
            args[name] = "cpu" if isinstance(arg, torch.device) else arg
        try:
            result = op.target(**args)
        except Exception:  # an op that cannot be asked promises nothing
            return False
        if not isinstance(result, torch.Tensor) or bool((result != 0).any()) or bool(result.isnan().any()):
            return False
    return True


def kind_of(op: Op) -> str:
    return op.target.overloadpacket.__name__.removesuffix("_") if hasattr(op.target, "overloadpacket") else ""


def finite(op: Op) -> bool:
    """All plain numbers among the arguments: 0 * inf is no zero."""
    return all(math.isfinite(arg) for arg in op.numbers)


def depends_on_width(op: Op, axis: Axis) -> bool:
    """Whether a plain number in the call looks like a function of this axis' size, as in ``x * C ** -0.5``."""
    n = len(axis)
    numbers = [abs(arg) for arg in op.numbers if isinstance(arg, float) or arg > 2]
    return any(math.isclose(arg, f, rel_tol=1e-12) for arg in numbers for f in (n, 1 / n, n**0.5, n**-0.5))


@register_rule(torch.Tag.pointwise)
def pointwise(op: Op) -> Value | None:
    values = op.inputs
    if not isinstance(op.metas(), torch.Tensor):
        return None
    shape = op.shape
    axes = broadcast_axes(op, values, len(shape))
    for axis in axes:
        if axis is not None and depends_on_width(op, axis):
            op.doubt(axis)
    kind = kind_of(op)
    is_product = kind in PRODUCTS and finite(op)
    is_quotient = kind in QUOTIENTS and len(values) == 2
    keeps = is_product or is_quotient or maps_zero_to_zero(op)
    givers = [v for v in values if v.dtype != torch.bool]

    def zero(zeros: Zeros) -> Masks:
        result: list[torch.Tensor | None] = []
        for d, axis in enumerate(axes):
            masks = [zero_at(v, len(axes) - d, shape[d], zeros) for v in givers]
            if axis is None or not keeps or not masks:
                result.append(None)
            elif is_quotient:
                result.append(masks[0])
            else:
                joined = masks[0]
                for mask in masks[1:]:
                    joined = either(joined, mask) if is_product else both(joined, mask)
                result.append(joined)
        return result

    return op.output(axes, zero)


# torch does not tag these, nor the in-place variants that share their rules
register_rule(*named("leaky_relu", "hardswish", "relu6", "log_sigmoid", "special_expit", "threshold", "rrelu", "mish"))(
    pointwise
)
register_rule(*named("multiply", "divide", "true_divide", "subtract", "rsub", "where", "masked_fill", "float_power"))(
    pointwise
)
register_rule(*named("_prelu_kernel", "complex", "polar", "silu", "hardsigmoid", "gelu", "abs", "floor_divide"))(
    pointwise
)


@register_rule(*named("copy", "copy_"))
def copy(op: Op) -> Result:
    """Overwrites the first tensor with the second."""
    x, source = op.inputs
    if op.shape != x.shape:  # torch.export's own mistake, where a forward fills a buffer that was None
        op.pin_all(f"is kept by {op.label}")
        return op.fixed()
    axes = broadcast_axes(op, [x, source], x.ndim)
    return op.output(axes, lambda zeros: [zero_at(source, x.ndim - d, n, zeros) for d, n in enumerate(x.shape)])
