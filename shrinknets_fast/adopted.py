"""Filters for layers that torch.nn has not: subclasses, transposed weights, whatever reads ``self.weight`` and ``self.bias``.

The object gets a class made for it: its own, behind :class:`FoldedReads`. Its forward stays what it was, and reads the weight
with the filter in it. ``weight_dim``: the dimension of the weight along which the layer makes its features.
"""

from __future__ import annotations

import functools
from typing import Any

from torch import nn

from .folded import FoldedReads
from .nn import FilterBase

__all__ = ["Adopted", "adopted_class", "can_be_adopted"]


class Adopted(FilterBase, FoldedReads):
    """A layer of another class, with a filter. ``made_of``: what :func:`adopted_class` was given."""

    made_of: tuple[Any, ...]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return rebuilt, self.made_of, self.__dict__


@functools.cache
def adopted_class(plain: Any, base: Any, **attributes: Any) -> Any:
    """``plain`` behind ``base``, with these attributes."""
    made_of = (plain, base, tuple(attributes.items()))
    kind: Any = type(f"Filtered{plain.__name__}", (base, plain), {"plain": plain, "made_of": made_of, **attributes})
    kind.__module__, kind.__doc__ = plain.__module__, plain.__doc__
    return kind


def rebuilt(plain: Any, base: Any, attributes: tuple[tuple[str, Any], ...]) -> nn.Module:
    """For copies and pickles, which cannot find the class by its name."""
    kind = adopted_class(plain, base, **dict(attributes))
    return kind.__new__(kind)


def can_be_adopted(module: nn.Module) -> bool:
    """Whether a weight and a bias are parameters of its own, which no parametrization or pruning computes."""
    if isinstance(module, FilterBase) or "bias" in vars(type(module)) or "weight" in vars(type(module)):
        return False
    own = module._parameters
    weight, bias = own.get("weight"), own.get("bias")
    if weight is None or not weight.is_floating_point() or "bias" not in own and hasattr(module, "bias"):
        return False
    return bias is None or bias.dim() == 1
