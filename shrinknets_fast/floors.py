"""Thetas that an optimizer's step may not kill."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

Tensors = list[torch.Tensor]
FLOOR = 1e-3  # a feature as good as dead, which one step of a learning rate brings back


class Floors:
    """Around each step of every ``torch.optim`` optimizer: theta does not fall below min(its floor, what it was before).

    So who sets a theta to zero between steps is obeyed. ask() -> (thetas, floors), two lists of tensors of the same shapes;
    a floor of -inf protects nothing. Nothing waits for the device.
    """

    def __init__(self, ask: Callable[[], tuple[Tensors, Tensors]]) -> None:
        self._ask = ask
        # id(optimizer) -> (thetas, what they do not fall below), during a step
        self._during: dict[int, tuple[Tensors, Tensors]] = {}
        alive = weakref.ref(self)

        def before(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
            if (floors := alive()) is not None:
                floors.before_step(optimizer)

        def after(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
            if (floors := alive()) is not None:
                floors.after_step(optimizer)

        handles = register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)
        for handle in handles:
            weakref.finalize(self, handle.remove)

    @torch.no_grad()
    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        thetas, floors = self._ask()
        least = list(torch._foreach_minimum(thetas, floors)) if thetas else []
        self._during[id(optimizer)] = thetas, least

    @torch.no_grad()
    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        thetas, least = self._during.pop(id(optimizer), ([], []))
        if thetas:
            torch._foreach_maximum_(thetas, least)
