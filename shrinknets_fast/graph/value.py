"""Tensors of the graph, and where they are read and made zero."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..errors import ShrinkError
from .features import Axis, FeatureSpace

if TYPE_CHECKING:
    from .op import Op


class RuleError(ShrinkError):
    """What a rule says of an op cannot be."""


class Value:
    """A tensor of the graph: for each dimension an :class:`Axis`, or None where no position can leave.

    A parameter's or buffer's axes are made when a rule first asks for them.
    """

    __slots__ = ("axes", "dtype", "shape", "tensor")

    def __init__(
        self,
        shape: Sequence[Any],
        dtype: torch.dtype | None,
        tensor: torch.Tensor | None,
        axes: Iterable[Axis | None] | None = None,
    ) -> None:
        self.shape = tuple(checked_size(size) for size in shape)
        self.dtype = dtype
        self.tensor = tensor
        self.axes: list[Axis | None] = list(axes) if axes is not None else [None] * len(self.shape)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def axis(self, dim: int, features: FeatureSpace) -> Axis | None:
        if not -self.ndim <= dim < self.ndim:
            raise RuleError(
                f"dimension {dim} of a tensor of shape {self.shape}, expected {-self.ndim} to {self.ndim - 1}"
            )
        dim %= self.ndim
        if self.axes[dim] is None and self.tensor is not None:
            self.axes[dim] = features.new_axis(self.shape[dim])
        return self.axes[dim]

    def all_axes(self, features: FeatureSpace) -> list[Axis | None]:
        return [self.axis(dim, features) for dim in range(self.ndim)]


def checked_size(size: Any) -> int:
    try:
        return int(size)
    except Exception as error:  # torch's is a page of advice for its own developers
        message = (
            f"a tensor of the forward has a size that depends on values ({size}), as a mask or nonzero() makes them"
        )
        raise ShrinkError(f"{message}; expected sizes that do not: torch.where, or masked sums") from error


@dataclass(frozen=True)
class Read:
    """``op`` adds up the positions of this axis: it loses nothing where they are zero, and needs all others.

    ``reason``: why it needs them, where that is another one.
    """

    value: Value
    dim: int
    op: Op
    reason: str = ""

    @property
    def axis(self) -> Axis:
        axis = self.value.axes[self.dim]
        assert axis is not None  # there is no Read of any other
        return axis


@dataclass(frozen=True)
class Step:
    """One op's outputs and the function that tells where they are zero, given where its inputs are."""

    op: Op
    outputs: tuple[Value, ...]
    zero: Callable[[Zeros], Sequence[Any]]


class Zeros:
    """For each value and dimension: which positions hold nothing but zeros. None means that none is known to."""

    def __init__(self, count: int, supposed: Mapping[Value, int]) -> None:
        self.count = count
        self._supposed = supposed
        self._known: dict[Value, Sequence[torch.Tensor | None]] = {}

    def __call__(self, value: Value, dim: int) -> torch.Tensor | None:
        known = self._known.get(value)
        return None if known is None else known[dim]

    def dead(self, theta: Value) -> torch.Tensor | None:
        """The dead features of a filter's theta."""
        return self(theta, 0)

    def of(self, value: Value) -> list[torch.Tensor | None]:
        """For all its dimensions."""
        return [self(value, dim) for dim in range(value.ndim)]

    def everywhere(self, value: Value) -> bool:
        """Whether all of the value is known to be zero."""
        return any(mask is not None and len(mask) and bool(mask.all()) for mask in self._known.get(value, ()))

    def record(self, outputs: Iterable[Value], zeros: Iterable[Sequence[torch.Tensor | None]]) -> None:
        for value, known in zip(outputs, zeros, strict=True):
            if value in self._supposed:
                dim = self._supposed[value]
                known = [
                    torch.ones(len(a), dtype=torch.bool) if d == dim and a is not None else k
                    for d, (a, k) in enumerate(zip(value.axes, known, strict=True))
                ]
            self._known[value] = known
