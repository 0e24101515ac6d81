"""What happened to a model last: which collector it has, and whether a checkpoint was loaded."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from .collector import GarbageCollector

_collectors: weakref.WeakKeyDictionary[nn.Module, weakref.ref[GarbageCollector]] = weakref.WeakKeyDictionary()
_loaded: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def note_collector(model: nn.Module, collector: GarbageCollector) -> None:
    _collectors[model] = weakref.ref(collector)


def collector_of(model: nn.Module) -> GarbageCollector | None:
    """The last one that was made for this model and is still there."""
    found = _collectors.get(model)
    return found() if found is not None else None


def note_loaded(model: nn.Module) -> None:
    _loaded.add(model)


def was_loaded(model: nn.Module) -> bool:
    """By ``sn.load_state_dict``: it may have been at its target already."""
    return model in _loaded
