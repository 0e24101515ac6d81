"""The tensors in whatever a model returns: nested lists, dicts, named tuples, dataclasses, objects with attributes."""

from __future__ import annotations

import contextlib
import enum
import numbers
from collections.abc import Iterator, Mapping, Set
from typing import Any

import torch
from torch import nn

from ..errors import ShrinkError
from ..insides import pytree


def tensors_in(output: Any) -> list[torch.Tensor]:
    """All tensors of ``output``, in order. What torch's pytree does not know is a leaf to it; this looks inside.

    Raises ShrinkError for an object that may hide tensors: what it hides would be no output, and could shrink.
    """
    found = []
    for leaf in pytree.tree_leaves(output):
        if isinstance(leaf, torch.Tensor):
            found.append(leaf)
        elif leaf is not None and not isinstance(leaf, PLAIN):
            found += tensors_in(inside(leaf))
    return found


PLAIN = (numbers.Number, str, bytes, enum.Enum, type, torch.dtype, torch.device, torch.Size)


def inside(leaf: Any) -> list[Any]:
    if isinstance(leaf, Mapping):
        return list(leaf.values())
    if isinstance(leaf, Set):
        return list(leaf)
    slots = [name for kind in type(leaf).__mro__ for name in getattr(kind, "__slots__", ())]
    if not hasattr(leaf, "__dict__") and not slots:
        raise ShrinkError(
            f"the model returns a {type(leaf).__name__}, expected tensors, containers or objects with attributes"
        )
    return [*getattr(leaf, "__dict__", {}).values(), *(getattr(leaf, name) for name in slots if hasattr(leaf, name))]


@contextlib.contextmanager
def returning_tensors(model: nn.Module) -> Iterator[None]:
    """Inside, ``model`` returns the tuple of its tensors, which torch.export always understands."""
    handle = model.register_forward_hook(lambda module, args, output: tuple(tensors_in(output)))
    try:
        yield
    finally:
        handle.remove()
