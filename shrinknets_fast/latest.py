"""Which collector a model has, for those who want to know what it would leave."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from .collector import GarbageCollector

_collectors: weakref.WeakKeyDictionary[nn.Module, weakref.ref[GarbageCollector]] = weakref.WeakKeyDictionary()


def note_collector(model: nn.Module, collector: GarbageCollector) -> None:
    _collectors[model] = weakref.ref(collector)


def collector_of(model: nn.Module) -> GarbageCollector | None:
    """The last one that was made for this model and is still there."""
    found = _collectors.get(model)
    return found() if found is not None else None
