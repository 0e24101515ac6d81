"""Optimizers that no collector was given: their state stays behind when a parameter shrinks, and a fused step does not look."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.weak import WeakTensorKeyDictionary

from ..errors import ShrinkError
from ..insides import never_compiled

# every parameter that a collection has resized -> the shapes that it had
_shrunk = WeakTensorKeyDictionary()
# optimizer -> the number of collections when its state was last looked at
_looked_at: weakref.WeakKeyDictionary[torch.optim.Optimizer, int] = weakref.WeakKeyDictionary()
_collections = 0


def note_shrunk(sizes: Iterable[tuple[torch.Tensor, tuple[int, ...]]]) -> None:
    """From their next step on, optimizers whose state still has one of these sizes, (parameter, shape) each, are refused."""
    global _collections
    if not _collections:
        register_optimizer_step_pre_hook(refuse_stale_state)
    _collections += 1
    for tensor, shape in sizes:
        _shrunk.setdefault(tensor, set()).add(shape)


def forgotten(tensor: torch.Tensor) -> set[tuple[int, ...]]:
    """The shapes noted for this one, which are to be noted again: torch exchanges no tensor that is referred to weakly."""
    return _shrunk.pop(tensor, set())


def is_held_weakly(tensor: torch.Tensor) -> bool:
    """Whether somebody else refers to it weakly, as compiled code does."""
    return len(weakref.getweakrefs(tensor)) > (tensor in _shrunk)


def anything_shrank() -> bool:
    return _collections > 0


@never_compiled
def refuse_stale_state(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    if _looked_at.get(optimizer) == _collections:
        return
    for p in (p for group in optimizer.param_groups for p in group["params"]):
        former = _shrunk.get(p, set()) - {tuple(p.shape)}
        for name, value in optimizer.state.get(p, {}).items():
            if isinstance(value, torch.Tensor) and tuple(value.shape) in former:
                shapes = f"has shape {tuple(value.shape)}, its parameter {tuple(p.shape)}"
                raise ShrinkError(
                    f"{type(optimizer).__name__}: state {name!r} {shapes}; give it to the GarbageCollector"
                )
    _looked_at[optimizer] = _collections
