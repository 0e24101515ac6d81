"""Memory that a collection leaves unused behind the tensors it shrank, and how it is given back."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from .insides import users_of


@torch.no_grad()
def trim(tensors: Iterable[torch.Tensor], waste: float) -> int:
    """Move each tensor that leaves more than the share ``waste`` of its memory unused to memory of its size; bytes given back.

    One after the other, so the peak grows by one tensor. Memory that anything else refers to (another tensor, a graph) stays.
    """
    freed = 0
    for tensor in tensors:
        held = tensor.untyped_storage()
        unused = held.nbytes() - tensor.nbytes
        if unused > waste * held.nbytes() and is_alone(held):
            del held
            # set_ would part it from hooks that wait for its gradient, as DistributedDataParallel's do
            tensor.data = tensor.detach().clone()
            freed += unused
    return freed


def is_alone(storage: torch.UntypedStorage) -> bool:
    """Whether one tensor and ``storage``, the Python object at hand, are all that holds this memory."""
    return users_of(storage) == 2
