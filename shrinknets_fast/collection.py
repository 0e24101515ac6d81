"""What a collector hands out: what a collection did, what goes into a checkpoint, and what a copy of a model holds."""

from __future__ import annotations

import dataclasses
from typing import NoReturn, TypedDict

import torch

from .errors import ShrinkError


@dataclasses.dataclass(frozen=True)
class Collection:
    """What one collection did: features removed per hub, bytes written, bytes no longer used (state included; see
    :meth:`GarbageCollector.trim`), milliseconds.

    ``branches``: the residual branches that left as a whole.
    """

    removed: dict[str, int]
    bytes_moved: int
    bytes_freed: int
    milliseconds: float
    branches: tuple[str, ...] = ()


class CollectorState(TypedDict):
    """What a collector puts into a checkpoint."""

    steps: int
    generator: torch.Tensor
    seen: dict[str, int]
    kept: dict[str, torch.Tensor]


class NoCollector:
    """In place of a collector where a model that holds one was copied or loaded."""

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("_"):
            raise AttributeError(name)
        raise ShrinkError(f"{name}: this came with a copy of a model; make a new GarbageCollector for it")
