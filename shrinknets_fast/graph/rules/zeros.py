"""Small helpers on masks of zero positions; None stands for a mask that is False everywhere."""

from __future__ import annotations

import torch


def either(first, second):
    if first is None or second is None:
        return first if second is None else second
    return first | second


def both(first, second):
    return None if first is None or second is None else first & second


def changed(mask, change):
    """The mask at the places where :meth:`Op.rearranged` puts an axis."""
    return None if mask is None else change(mask)


def carried(inputs, axes):
    """A zero function for ops that move features without changing them: a feature stays zero wherever it goes."""

    def zero(zeros):
        alone = inputs[0] if len(inputs) == 1 else None
        by_feature = None
        result: list[torch.Tensor | None] = []
        for axis in axes:
            place = alone.axes.index(axis) if alone is not None and axis is not None and axis in alone.axes else None
            if axis is None:
                result.append(None)
            elif place is not None:
                result.append(zeros(alone, place))
            else:
                by_feature = zero_features(inputs, zeros) if by_feature is None else by_feature
                result.append(by_feature[axis.ids])
        return result

    return zero


def zero_features(inputs, zeros):
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
