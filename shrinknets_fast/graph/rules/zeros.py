"""Small helpers on masks of zero positions; None stands for a mask that is False everywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ..features import Axis
from ..value import Value, Zeros


def either(first: torch.Tensor | None, second: torch.Tensor | None) -> torch.Tensor | None:
    if first is None or second is None:
        return first if second is None else second
    return first | second


def both(first: torch.Tensor | None, second: torch.Tensor | None) -> torch.Tensor | None:
    return None if first is None or second is None else first & second


def changed(mask: torch.Tensor | None, change: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor | None:
    """The mask at the places where :meth:`Op.rearranged` puts an axis."""
    return None if mask is None else change(mask)


def carried(inputs: Sequence[Value], axes: Sequence[Axis | None]) -> Callable[[Zeros], Sequence[torch.Tensor | None]]:
    """A zero function for ops that move features without changing them: a feature stays zero wherever it goes."""

    def zero(zeros: Zeros) -> Sequence[torch.Tensor | None]:
        alone = inputs[0] if len(inputs) == 1 else None
        by_feature = None
        result: list[torch.Tensor | None] = []
        for axis in axes:
            place = alone.axes.index(axis) if alone is not None and axis is not None and axis in alone.axes else None
            if axis is None:
                result.append(None)
            elif alone is not None and place is not None:
                result.append(zeros(alone, place))
            else:
                by_feature = zero_features(inputs, zeros) if by_feature is None else by_feature
                result.append(by_feature[axis.ids])
        return result

    return zero


def zero_features(inputs: Sequence[Value], zeros: Zeros) -> torch.Tensor:
    """Mask over features: present in these inputs, and zero at each of its positions there."""
    seen = torch.zeros(zeros.count, dtype=torch.bool)
    live = torch.zeros(zeros.count, dtype=torch.bool)
    for value in inputs:
        for dim, axis in enumerate(value.axes):
            if axis is not None:
                seen[axis.ids] = True
                mask = zeros(value, dim)
                live[axis.ids if mask is None else axis.ids[~mask]] = True
    return seen & ~live
