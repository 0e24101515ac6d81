"""The wrappers that keep a record of a model's tensors, whoever made them."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ..errors import ShrinkError
from ..wrapped import unwrapped, wrappers
from . import ddp

DDP = nn.parallel.DistributedDataParallel


class Wrappers:
    """Those of ``model`` that have to be told when its tensors change. This keeps none of them alive.

    ``given``: whether whoever asks has the model in one. If not they are found among the objects of the process.
    """

    def __init__(self, model: nn.Module) -> None:
        own = [wrapper for wrapper in wrappers(model) if isinstance(wrapper, DDP)]
        self.given = bool(own)
        self._model = unwrapped(model)
        self._known = weakref.WeakSet(own)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._known)

    def find(self) -> None:
        """Look for them, where processes train together: 0.1 s among 350,000 objects."""
        if self.given or not is_distributed():
            return
        own = {id(p) for p in self._model.parameters()}
        for thing in gc.get_objects():
            if issubclass(type(thing), DDP) and any(id(p) in own for p in thing.parameters()):
                self._known.add(thing)

    def check(self) -> None:
        """Raises ShrinkError for one that could not be rebuilt, or if there may be some that cannot be seen."""
        if not self._known and is_distributed() and gc.get_freeze_count():
            what = "gc.freeze() hides whether the model is wrapped in DistributedDataParallel"
            raise ShrinkError(f"GarbageCollector: {what}; give it the wrapper, or call gc.unfreeze()")
        for wrapper in self:
            ddp.check(wrapper)
        if self._known:
            ddp.check_averaged(self, self._model)

    def rebuild(self) -> None:
        """Each stays the object that it is, with its options and hooks."""
        for wrapper in self:
            ddp.rebuild(wrapper)


def is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
