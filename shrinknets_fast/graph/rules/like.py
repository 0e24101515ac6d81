"""Ops that hand a tensor on, drop some of it, or make a new one of its shape or of a given one."""

from __future__ import annotations

import torch

from ..op import Op, Result
from ..value import Value
from .registry import named, register_rule
from .zeros import carried

aten = torch.ops.aten


@register_rule(
    *named("dropout", "feature_dropout", "contiguous", "detach", "alias", "to", "_to_copy", "clone", "type_as")
)
@register_rule(*named("lift_fresh_copy", "lift_fresh", "lift", "bernoulli", "view_as_real_copy", "pin_memory"))
def unchanged(op: Op) -> Value:
    """Zeros stay where they are: nothing is added to them."""
    x = op.inputs[0]
    axes = op.axes(x)
    drawn = op.target.overloadpacket.__name__.startswith("bernoulli") and len(op.target._schema.arguments) > 2
    keeps = not drawn  # from a given probability, whatever was there
    return op.output(axes, carried([x], axes) if keeps else None)


@register_rule(*named("alpha_dropout", "feature_alpha_dropout"))
def alpha_dropout(op: Op) -> Value:
    """In training, even a zero is moved to where the mean stays."""
    x = op.inputs[0]
    axes = op.axes(x)
    return op.output(axes, None if op["train"] and op["p"] > 0 else carried([x], axes))


@register_rule(*named("native_dropout"))
def native_dropout(op: Op) -> list[Value]:
    x = op.inputs[0]
    axes = op.axes(x)
    return op.outputs([axes, axes], lambda zeros: [zeros.of(x), [None] * x.ndim])


@register_rule(*named("zeros_like", "zero", "zero_"))
def zeros_like(op: Op) -> Value:
    """As wide as the first argument, whose values do not matter."""
    x = op.inputs[0]
    axes = op.axes(x)
    return op.output(axes, lambda zeros: [None if a is None else torch.ones(len(a), dtype=torch.bool) for a in axes])


@register_rule(
    *named("ones_like", "full_like", "empty_like", "rand_like", "randn_like", "randint_like", "fill", "fill_")
)
@register_rule(*named("uniform_", "normal_", "exponential_", "random_", "log_normal_", "cauchy_", "geometric_"))
def like(op: Op) -> Value:
    x = op.inputs[0]
    return op.output(op.axes(x))


@register_rule(
    *named("zeros", "ones", "full", "empty", "rand", "randn", "randint", "randperm", "arange", "linspace", "logspace")
)
@register_rule(
    *named("eye", "tril_indices", "triu_indices", "scalar_tensor", "tensor", "empty_strided", "bartlett_window")
)
@register_rule(*named("new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided", "hann_window", "normal"))
@register_rule(
    *named("_assert_tensor_metadata", "_assert_async", "_assert_scalar", "sym_size", "sym_numel", "is_nonzero")
)
def constructed(op: Op) -> Result:
    """Made from numbers, or asks about a tensor: nothing of the result can leave, and no value is needed."""
    return op.fixed()
