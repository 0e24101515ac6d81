"""The proximal alternative to the penalty's gradient: exact zeros by soft-thresholding theta after each step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .companions.guard import Guard
from .companions.optimizers import checked_optimizers
from .errors import ShrinkError
from .filters import HOW, thetas
from .insides import never_compiled

__all__ = ["ProximalL1"]


Step = float | torch.Tensor


def exact(step: Step) -> Step:
    """A count of steps in double precision; one on a GPU (fused, capturable) stays there, or the host would wait for it."""
    return step.double() if isinstance(step, torch.Tensor) else step


def _corrected(second_moment: torch.Tensor, step: Step, beta: float) -> torch.Tensor:
    return second_moment / (1 - beta ** exact(step))


def _sgd(state: Mapping[str, Any], group: Mapping[str, Any]) -> Step:
    return group["lr"]


def _adam(state: Mapping[str, Any], group: Mapping[str, Any]) -> Step:
    moment = state["max_exp_avg_sq"] if group["amsgrad"] else state["exp_avg_sq"]
    return group["lr"] / (_corrected(moment, state["step"], group["betas"][1]).sqrt() + group["eps"])


def _rmsprop(state: Mapping[str, Any], group: Mapping[str, Any]) -> Step:
    variance = state["square_avg"]
    if group["centered"]:
        variance = variance - state["grad_avg"].square()
    return group["lr"] / (variance.sqrt() + group["eps"])


def _adagrad(state: Mapping[str, Any], group: Mapping[str, Any]) -> Step:
    rate = group["lr"] / (1 + (exact(state["step"]) - 1) * group["lr_decay"])
    return rate / (state["sum"].sqrt() + group["eps"])


STEP_SIZES = {
    torch.optim.SGD: _sgd,
    torch.optim.Adam: _adam,
    torch.optim.AdamW: _adam,
    torch.optim.RMSprop: _rmsprop,
    torch.optim.Adagrad: _adagrad,
}


class ProximalL1:
    """Soft-threshold every theta after each ``optimizer.step()``: ``theta = max(0, theta - step * lam)``.

    ``step`` is the step size that each coordinate really took: ``lr`` for SGD, ``lr / (sqrt(v) + eps)`` for the adaptive
    optimizers, with their bias correction; that is the proximal operator of ``lam * sum max(0, theta)`` in the optimizer's
    own metric. Use it instead of adding ``lam * penalty(model)`` to the loss. Attaches to the real optimizer, and buries the
    dead as the collector does.

    optimizer: SGD, Adam, AdamW, RMSprop or Adagrad; model: thetas are looked up at each step; lam: at least 0, may be changed.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, model: nn.Module, lam: float) -> None:
        (self._followed,) = checked_optimizers(optimizer)
        if type(optimizer) not in STEP_SIZES:
            known = ", ".join(kind.__name__ for kind in STEP_SIZES)
            raise ShrinkError(f"ProximalL1: optimizer is {type(optimizer).__name__}, expected one of {known}")
        self.lam = checked_lam(lam)
        held = {id(p) for p in self._followed.parameters()}
        if not any(id(theta) in held for theta in thetas(model).values()):
            what = "has no theta of" if thetas(model) else f"cannot move the filters of a model without any; {HOW}:"
            raise ShrinkError(f"ProximalL1: optimizer {type(optimizer).__name__} {what} {type(model).__name__}")
        self._model = model
        self._known: list[nn.Parameter] = []
        self._handle = optimizer.register_step_post_hook(self._after_step)
        self._guard: Guard | None = Guard([self._followed], self._thetas)

    @never_compiled
    @torch.no_grad()
    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        filters = {id(theta) for theta in self._thetas()}
        step_size = STEP_SIZES[type(optimizer)]
        lam = checked_lam(self.lam)
        skipped = getattr(optimizer, "found_inf", None)  # a fused optimizer itself leaves out what GradScaler skips
        for group in optimizer.param_groups:
            for theta in group["params"]:
                if id(theta) in filters and theta.grad is not None:
                    step = step_size(optimizer.state.get(theta, {}), group)
                    if skipped is not None:
                        step = torch.where(skipped.to(theta.device) == 0, step, 0)
                    theta.sub_((step * lam) * (theta > 0)).clamp_(min=0)

    def _thetas(self) -> list[nn.Parameter]:
        """The same list as long as the model has these thetas."""
        found = list(thetas(self._model).values())
        if len(found) != len(self._known) or any(new is not old for new, old in zip(found, self._known, strict=True)):
            self._known = found
        return self._known

    def remove(self) -> None:
        """Detach from the optimizer."""
        self._handle.remove()
        self._guard = None

    def state_dict(self) -> dict[str, float]:
        return {"lam": self.lam}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.lam = checked_lam(state["lam"])


def checked_lam(lam: float) -> float:
    if isinstance(lam, bool) or not isinstance(lam, (int, float)) or not 0 <= lam < math.inf:
        raise ShrinkError(f"ProximalL1: lam is {lam!r}, expected a finite number of at least 0")
    return float(lam)
