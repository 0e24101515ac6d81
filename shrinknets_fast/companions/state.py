"""The tensors in an optimizer's state for one parameter, whatever holds them, and which of their dimensions follow its own."""

from __future__ import annotations

import enum
import math
import numbers
from collections import deque
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any, NamedTuple

import torch

from ..errors import ShrinkError

PLAIN = (numbers.Number, str, bytes, enum.Enum, type, torch.dtype, torch.device, torch.Size, torch.Generator)


Dims = tuple[int | None, ...]
Sizes = tuple[Sequence[int], Mapping[str, tuple[int, ...]]]  # (shape of a parameter, {path: shape in its state})
FLAT: Any = ("all",)  # in place of dims: the parameter's entries in one row


class Member(NamedTuple):
    """A tensor that shrinks with a parameter. dims: for each dimension the parameter's that it follows, or None.

    row: the tensor with all entries in one row of which this one is a view, or None.
    """

    tensor: torch.Tensor
    dims: Dims
    row: torch.Tensor | None = None

    @classmethod
    def of(cls, tensor: torch.Tensor, dims: Dims, whole: Sequence[int]) -> Member:
        if dims != FLAT:
            return cls(tensor, dims)
        return cls(tensor.view(whole), tuple(range(len(whole))), tensor)

    def kept(self, keep: dict[int, torch.Tensor], name: str = "") -> dict[int, torch.Tensor]:
        """``keep``, {dimension of the parameter ``name``: positions}, for its own dimensions."""
        if self.dims == tuple(range(len(self.dims))) and all(dim < len(self.dims) for dim in keep):
            return keep  # itself, so that what shrinks alike is looked at once
        if any(keep[d].dim() > 1 for d in self.dims if d in keep) and self.dims[:2] != (0, 1):
            what = f"{name}: an optimizer's state of shape {tuple(self.tensor.shape)} has one entry for columns of several groups"
            raise ShrinkError(f"{what}, of which other ones leave each group; expected entries for each row")
        return {d: keep[dim] for d, dim in enumerate(self.dims) if dim in keep}

    @property
    def owner(self) -> torch.Tensor:
        return self.tensor if self.row is None else self.row

    def put_in_row(self) -> None:
        """Once it has shrunk."""
        if self.row is not None:
            t = self.tensor
            self.row.set_(t.untyped_storage(), t.storage_offset(), (t.numel(),), (1,))


class Layout(NamedTuple):
    """Per dimension of a state tensor: which of the parameter's it follows (None: no feature is there), and its size."""

    dims: Dims
    sizes: tuple[int, ...]

    def fits(self, shape: Sequence[int], whole: Sequence[int]) -> bool:
        if self.dims == FLAT:
            return tuple(shape) == (math.prod(whole),)
        if len(shape) != len(self.dims):
            return False
        expected = [size if dim is None else whole[dim] for dim, size in zip(self.dims, self.sizes, strict=True)]
        return list(shape) == expected


def tensors_of(value: Any, path: str = "", seen: set[int] | None = None) -> Iterator[tuple[str, torch.Tensor]]:
    """(path, tensor) for each tensor with more than one entry in ``value``: nested containers, and attributes of objects.

    Raises ShrinkError for an object that may hide some.
    """
    seen = set() if seen is None else seen
    if isinstance(value, torch.Tensor):
        if value.dim() and value.numel() != 1:
            yield path, value
        return
    if value is None or isinstance(value, PLAIN) or callable(value) or id(value) in seen:
        return
    seen.add(id(value))
    for key, item in inside(value, path):
        yield from tensors_of(item, f"{path}{key}" if path else str(key).strip("[]'."), seen)


def inside(value: Any, path: str) -> list[tuple[str, Any]]:
    """(what to append to the path, item) of a container or an object."""
    if isinstance(value, Mapping):
        return [(f"[{key!r}]", item) for key, item in value.items()]
    if isinstance(value, (list, tuple, deque, Set)):
        return [(f"[{i}]", item) for i, item in enumerate(value)]
    slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
    if not hasattr(value, "__dict__") and not slots:
        raise ShrinkError(
            f"state {path!r} is a {type(value).__name__}, expected tensors, containers or objects with attributes"
        )
    found = [*vars(value).items()] if hasattr(value, "__dict__") else []
    found += [(name, getattr(value, name)) for name in slots if hasattr(value, name)]
    return [(f".{name}", item) for name, item in found]


def dims_of(shape: Sequence[int], whole: Sequence[int], layouts: Sequence[Layout] = ()) -> Dims | None:
    """For each dimension of a state tensor the dimension of its parameter, of shape ``whole``, that it follows, or None for none.

    layouts: what trials found out about it. Returns None where nothing tells.
    """
    if math.prod(shape) == 1:
        return (None,) * len(shape)
    for layout in layouts:
        if layout.fits(shape, whole):
            return layout.dims
    if len(shape) == len(whole) and all(mine in (size, 1) for mine, size in zip(shape, whole, strict=True)):
        return tuple(d if mine == size else None for d, (mine, size) in enumerate(zip(shape, whole, strict=True)))
    if len(set(whole)) == len(whole) and all(size in whole for size in shape):  # its sizes tell
        return tuple(whole.index(size) for size in shape)
    return None


def find_layouts(before: Sizes, after: Sizes) -> dict[str, Layout]:
    """{path: Layout} from the state at two sizes of one parameter, no two of its dimensions alike.

    before, after: (shape of the parameter, {path: shape}). Raises ShrinkError for a tensor whose sizes follow nothing.
    """
    (whole, shapes), (smaller, shrunk) = before, after
    layouts = {}
    for path, shape in shapes.items():
        dims, other = [], shrunk.get(path)
        if len(whole) > 1 and shape == (math.prod(whole),) and other == (math.prod(smaller),):
            layouts[path] = Layout(FLAT, shape)
            continue
        for d, size in enumerate(shape):
            mine = other[d] if other is not None and len(other) == len(shape) else None
            follows = [k for k, pair in enumerate(zip(whole, smaller, strict=True)) if pair == (size, mine)]
            if not follows and mine != size:
                raise ShrinkError(f"state {path!r} has shape {shape} for a parameter of shape {whole}")
            dims.append(follows[0] if follows else None)
        layouts[path] = Layout(tuple(dims), tuple(shape))
    return layouts
