"""What a shrinking run has to show, as scalars."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..filters import features
from ..wrapped import unwrapped


def scalars(model: nn.Module) -> dict[str, float]:
    """{"features/<filter>": alive, "features": alive in all of them, "parameters": numbers in all parameters}"""
    alive = {name: count for name, (count, _) in features(model).items()}
    found = {f"features/{name}": float(count) for name, count in alive.items()}
    found["features"] = float(sum(alive.values()))
    found["parameters"] = float(sum(p.numel() for p in unwrapped(model).parameters()))
    return found


def write(writer: Any, model: nn.Module, step: int, collections: int | None = None) -> None:
    """Add :func:`scalars`, and the number of collections so far, to a SummaryWriter, under "shrinknets/"."""
    found = scalars(model)
    if collections is not None:
        found["collections"] = float(collections)
    for name, value in found.items():
        writer.add_scalar(f"shrinknets/{name}", value, step)
