"""Cutting an axis into pieces, and picking from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..op import Axes, Op, Result
from ..value import Value
from .registry import named, register_rule
from .zeros import carried

aten = torch.ops.aten


def cut(op: Op, dim: int, places: Sequence[slice], follows: bool = False) -> list[Axes]:
    """One output per slice in ``places``. follows: the code takes equal parts, whatever the width is.

    Equal parts that cover the axis lose features in equal numbers. The positions of all others would move.
    """
    x = op.inputs[0]
    dim %= x.ndim
    axes = op.axes(x)
    whole = axes[dim]
    if not equal_parts(places, x.shape[dim]):
        op.pin(whole, f"is cut at fixed positions by {op.label}")
    else:
        op.tie(whole, x.shape[dim] // len(places))
        if not follows:
            op.doubt(whole)
    return [[*axes[:dim], op.part(whole, place), *axes[dim + 1 :]] for place in places]


def equal_parts(places: Sequence[slice], size: int) -> bool:
    return size % len(places) == 0 and sorted((p.start, p.stop) for p in places) == [
        (k * size // len(places), (k + 1) * size // len(places)) for k in range(len(places))
    ]


def all_outputs(op: Op, pieces: Sequence[Axes]) -> list[Value]:
    x = op.inputs[0]
    return op.outputs(pieces, lambda zeros: [carried([x], axes)(zeros) for axes in pieces])


def successive(sizes: Sequence[int]) -> list[slice]:
    """Slices of these sizes, one after another."""
    ends = torch.tensor(sizes).cumsum(0).tolist()
    return [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]


@register_rule(
    *named(
        "chunk", "unsafe_chunk", "split", "unsafe_split", "split_with_sizes", "unsafe_split_with_sizes", "tensor_split"
    )
)
def split(op: Op) -> list[Value]:
    dim = op["dim"] % op.inputs[0].ndim
    sizes = [shape[dim] for shape in op.shapes]
    follows = "chunk" in op.name or op.name.endswith(".sections")
    return all_outputs(op, cut(op, dim, successive(sizes), follows))


def slice_of(name: str, given: Mapping[str, Any], shape: Sequence[int]) -> tuple[int, slice] | None:
    """(dim, slice) of a slicing call of a tensor of this shape, whichever op it is, or None."""
    if name not in ("slice", "narrow"):
        return None
    dim, start = given.get("dim") or 0, given.get("start")
    dim, size = dim % len(shape), shape[dim]
    if name == "slice":
        return dim, slice(*slice(start, given.get("end"), given.get("step")).indices(size))
    if not isinstance(start, int):
        return None
    start %= max(size, 1)
    return dim, slice(start, start + given["length"])


@register_rule(aten.slice.Tensor, aten.narrow.default)
def slice_tensor(op: Op) -> Value:
    """All of an axis, or one of several parts: x[:, :n // 2] and x[:, n // 2:] are cut like a chunk."""
    x = op["self"]
    own = slice_of(op.target.overloadpacket.__name__, op.arguments, x.shape)
    assert own is not None  # its start is a number
    dim, place = own
    axes = op.axes(x)
    if axes[dim] is None or (place.start, place.stop, place.step or 1) == (0, x.shape[dim], 1):
        return op.output(axes, carried([x], axes))
    if (place.step or 1) != 1:
        op.pin(axes[dim], f"is cut at fixed positions by {op.label}")
        return op.output([None if d == dim else axis for d, axis in enumerate(axes)])
    siblings = [slice_of(name, given, x.shape) for name, given in op.calls_on("self")]
    cuts = {(s.start, s.stop) for found in siblings if found and found[0] == dim and ((s := found[1]).step or 1) == 1}
    places = [slice(*bounds) for bounds in sorted(cuts) if bounds != (0, x.shape[dim])]
    axes = cut(op, dim, places)[[(p.start, p.stop) for p in places].index((place.start, place.stop))]
    return op.output(axes, carried([x], axes))


@register_rule(*named("select", "unbind"))
def select(op: Op) -> Result:
    """One position of an axis: on an axis of features, others would move into its place."""
    x = op.inputs[0]
    dim = op["dim"] % x.ndim
    op.pin(op.axis(x, dim), f"is picked by position in {op.label}")
    axes = [axis for d, axis in enumerate(op.axes(x)) if d != dim]
    zero, count = carried([x], axes), len(op.shapes)
    return op.outputs([axes] * count, lambda zeros: [zero(zeros)] * count) if op.several else op.output(axes, zero)


@register_rule(*named("index_select", "index"))
def index(op: Op) -> Result:
    """Positions picked by a tensor, from an axis on which nothing can leave; all other axes pass."""
    x, indices = op.inputs[0], op["indices"] if "indices" in op.arguments else [None] * op["dim"] + [op["index"]]
    where = [d for d, i in enumerate(indices) if i is not None]
    if len(where) != 1 or indices[where[0]].dtype == torch.bool or op.name.startswith("aten.index_") and where[0] < 0:
        op.pin_all(f"is picked by position in {op.label}")
        return op.fixed()
    dim, places = where[0], indices[where[0]]
    for value, axis in [(x, dim), *((places, d) for d in range(places.ndim))]:
        op.pin(op.axis(value, axis), f"is picked by position in {op.label}")
    new = max(places.ndim, 1) if op.name.startswith("aten.index_select") else places.ndim
    axes = op.axes(x)
    axes[dim : dim + 1] = [None] * new
    return op.output(axes, carried([x], axes))


@register_rule(*named("flip", "fliplr", "flipud", "roll", "rot90"))
def reorder(op: Op) -> Result:
    x = op.inputs[0]
    axes, dims = op.axes(x), op.get("dims", []) if op.name.split(".")[1] in ("flip", "roll") else []
    dims = [dims] if isinstance(dims, int) else dims
    for d in [d % x.ndim for d in dims] or range(x.ndim):
        op.pin(axes[d], f"is put in another order by {op.label}")
    if op.name.startswith("aten.rot90"):
        return op.fixed()
    return op.output(axes, carried([x], axes))


@register_rule(aten.unfold.default)
def unfold(op: Op) -> Value:
    x = op.inputs[0]
    dim = op["dimension"] % x.ndim
    op.pin(op.axis(x, dim), f"is cut at fixed positions by {op.label}")
    axes = [None if d == dim else op.axis(x, d) for d in range(x.ndim)]
    return op.output([*axes, None], carried([x], [*axes, None]))
