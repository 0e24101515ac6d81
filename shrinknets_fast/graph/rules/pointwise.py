"""One rule for every pointwise op: axes meet by broadcasting, and the op itself is asked for f(0)."""

import itertools

import torch

from ..op import Value
from .registry import register_rule
from .zeros import both, carried, either

aten = torch.ops.aten
PRODUCTS = {aten.mul, aten.bitwise_and, aten.logical_and}


def broadcast_axes(op, values, ndim):
    """The axes of the broadcast result; what meets at one of its positions is unified."""
    axes = []
    for back in range(ndim, 0, -1):
        meeting = [(v, v.ndim - back) for v in values if v.ndim >= back]
        size = max((v.shape[d] for v, d in meeting if v.shape[d] != 1), default=1)
        full = [op.axis(v, d) for v, d in meeting if v.shape[d] == size]
        for v, d in meeting:
            if v.shape[d] != size:  # one feature that meets many
                op.pin(op.axis(v, d), f"is broadcast in {op.label}")
        known = [axis for axis in full if axis is not None]
        for axis in full:
            if known:
                op.unify(known[0], axis)
        axes.append(known[0] if known and len(known) == len(full) else None)
    return axes


def zero_at(op, value, back, zeros):
    """Where ``value`` is zero along the output's dimension ``back`` from the end."""
    dim = value.ndim - back
    return None if dim < 0 or value.axes[dim] is None else zeros(value, dim)


def maps_zero_to_zero(op):
    """Whether the op gives exactly 0 for zeros in every tensor argument, whatever its boolean arguments hold."""
    tensors = op.inputs
    flags = [v for v in tensors if v.dtype == torch.bool]
    for bits in itertools.product((False, True), repeat=len(flags)):
        given = dict(zip(map(id, flags), bits, strict=True))
        args = {}
        for name in op._args:
            arg = op[name]
            if isinstance(arg, Value):
                fill = given.get(id(arg), 0)
                arg = torch.full((1,), fill, dtype=arg.dtype)
            args[name] = arg
        try:
            result = op.target(**named_for_call(op, args))
        except Exception:  # an op that cannot be asked promises nothing
            return False
        if not isinstance(result, torch.Tensor) or bool((result != 0).any()) or bool(result.isnan().any()):
            return False
    return True


def named_for_call(op, args):
    """Keyword arguments; ``self`` is a legal name for an op's keyword, device arguments are replaced by the CPU."""
    return {name: ("cpu" if isinstance(arg, torch.device) else arg) for name, arg in args.items()}


def pointwise(op):
    values = op.inputs
    meta = op.node.meta.get("val")
    if not isinstance(meta, torch.Tensor):
        return None
    axes = broadcast_axes(op, values, meta.ndim)
    packet = getattr(op.target, "overloadpacket", None)
    is_product = packet in PRODUCTS or str(packet) == "aten.mul_"
    is_quotient = str(packet) in ("aten.div", "aten.div_") and len(values) == 2
    keeps = is_product or is_quotient or maps_zero_to_zero(op)
    givers = [v for v in values if v.dtype != torch.bool]

    def zero(zeros):
        result = []
        for d, axis in enumerate(axes):
            masks = [zero_at(op, v, len(axes) - d, zeros) for v in givers]
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


def unchanged(op):
    """Ops that hand their first argument on as it is, or drop some of its elements."""
    x = op.inputs[0]
    axes = [op.axis(x, d) for d in range(x.ndim)]
    return op.output(axes, carried([x], axes))


register_rule(
    aten.dropout, aten.dropout_, aten.feature_dropout, aten.feature_dropout_, aten.contiguous, aten.detach, aten.alias
)(unchanged)
register_rule(aten.to, aten._to_copy, aten.clone, aten.detach_, aten.type_as, aten.lift_fresh_copy)(unchanged)


@register_rule(aten._assert_tensor_metadata, aten._assert_async, aten._assert_scalar, aten.sym_size)
def nothing(op):
    """Asks about a tensor, makes none."""
    return op.fixed()
