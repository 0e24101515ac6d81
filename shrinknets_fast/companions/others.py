"""Optimizers that no collector was given: their state stays behind when a parameter shrinks, and a fused step does not look."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.weak import WeakTensorKeyDictionary

from ..errors import ShrinkError

_shrunk = WeakTensorKeyDictionary()  # every parameter that a collection has resized
_looked_at: weakref.WeakKeyDictionary[torch.optim.Optimizer, int] = (
    weakref.WeakKeyDictionary()
)  # collections when its state was last looked at
_collections = 0


def note_shrunk(tensors: Iterable[torch.Tensor]) -> None:
    """From their next step on, optimizers with larger state for one of these are refused."""
    global _collections
    if not _collections:
        register_optimizer_step_pre_hook(refuse_stale_state)
    _collections += 1
    for tensor in tensors:
        _shrunk[tensor] = True


def anything_shrank() -> bool:
    return _collections > 0


def refuse_stale_state(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    if _looked_at.get(optimizer) == _collections:
        return
    for p in (p for group in optimizer.param_groups for p in group["params"]):
        if p not in _shrunk:
            continue
        for name, value in optimizer.state.get(p, {}).items():
            if isinstance(value, torch.Tensor) and is_larger(value, p):
                shapes = f"has shape {tuple(value.shape)}, its parameter {tuple(p.shape)}"
                raise ShrinkError(
                    f"{type(optimizer).__name__}: state {name!r} {shapes}; give it to the GarbageCollector"
                )
    _looked_at[optimizer] = _collections


def is_larger(state: torch.Tensor, parameter: torch.Tensor) -> bool:
    return state.dim() == parameter.dim() > 0 and any(s > p for s, p in zip(state.shape, parameter.shape, strict=True))
