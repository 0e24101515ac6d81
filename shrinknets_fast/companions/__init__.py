"""What shrinks with the model: the state of its optimizers, and copies of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import nn

from ..errors import ShrinkError, warn
from ..watch import Filters
from .copies import Copies, Follow
from .optimizers import checked_optimizers
from .state import Member
from .trial import try_out

__all__ = ["Companions"]


class Companions:
    """The optimizers and copies that a collector was given. follow_dead: whether a feature "wait" s for its copies to die too."""

    def __init__(
        self,
        model: nn.Module,
        optimizers: torch.optim.Optimizer | Iterable[torch.optim.Optimizer] = (),
        follow: Follow = (),
        follow_dead: Literal["wait", "drop"] = "wait",
    ) -> None:
        if follow_dead not in ("wait", "drop"):
            raise ShrinkError(f"GarbageCollector: follow_dead is {follow_dead!r}, expected 'wait' or 'drop'")
        self.optimizers = checked_optimizers(optimizers)
        self.copies = Copies(model, follow)
        self._waits = follow_dead == "wait"
        self._told = False
        for optimizer in self.optimizers:
            try_out(optimizer)
            optimizer.check()

    def thetas(self, name: str, theta: torch.Tensor) -> list[torch.Tensor]:
        """The thetas of the copies that a feature waits for."""
        return self.copies.tensors(f"{name}.theta" if name else "theta", theta) if self._waits else []

    def warn_of_waiting(self, filters: Filters, share: float) -> None:
        """Once, if more than ``share`` of a filter is dead and lives in a copy: an average comes near zero, hardly ever to it.

        filters: {id(theta): (name, theta)}. Waits for the device.
        """
        for name, theta in filters.values() if self._waits and not self._told else ():
            for copy in self.thetas(name, theta):
                held = (theta <= 0) & (copy.to(theta.device) > 0)
                if held.sum() > max(share * len(theta), 1):
                    self._told = True
                    words = f"{name}: {int(held.sum())} of {len(theta)} features are dead and wait for a copy that is followed"
                    level = f"where theta is up to {float(copy[held.to(copy.device)].max()):.2g}"
                    warn(f"{words}, {level}; follow_dead='drop' does not wait")
                    return

    def members(self, name: str, tensor: torch.Tensor) -> list[Member]:
        """What shrinks as ``tensor`` does: itself, its copies, their gradients, its state in each optimizer.

        An error names what cannot.
        """
        alike = [tensor, *self.copies.tensors(name, tensor)]
        alike += [t.grad for t in alike if t.is_leaf and t.grad is not None]
        found = [Member(t, tuple(range(t.dim()))) for t in alike]
        for optimizer in self.optimizers:
            found += optimizer.state(tensor)
        for t in (member.tensor for member in found):
            if t.layout != torch.strided:
                expected = "expected torch.strided; zero_grad() before"
                raise ShrinkError(f"{name}: its gradient has layout {t.layout}, {expected}")
            if t.is_inference():
                where = "made under torch.inference_mode, where nothing can be resized"
                raise ShrinkError(f"{name}: a copy of it was {where}")
        return found
