"""Thetas that an optimizer's step may not kill."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

Tensors = list[torch.Tensor]
FLOOR = 1e-3  # a feature as good as dead, which one step of a learning rate brings back

# The hooks stay: torch goes over them as a dict, which the end of one of these in the middle of a step would change.
_all: weakref.WeakSet[Floors] = weakref.WeakSet()


class Floors:
    """Around each step of every ``torch.optim`` optimizer: theta does not fall below min(its floor, what it was before).

    So who sets a theta to zero between steps is obeyed. ask(ids) -> (thetas, floors) of those whose id is among them, two lists
    of tensors of the same shapes; a floor of -inf protects nothing. A method, whose object is not kept alive.
    """

    def __init__(self, ask: Callable[[set[int]], tuple[Tensors, Tensors]]) -> None:
        self._ask = weakref.WeakMethod(ask)
        # id(optimizer) -> (thetas, what they do not fall below), during a step
        self._during: dict[int, tuple[Tensors, Tensors]] = {}
        hook()
        _all.add(self)

    @torch.no_grad()
    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        ask = self._ask()
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        thetas, floors = ask(held) if ask is not None else ([], [])
        least = list(torch._foreach_minimum(thetas, floors)) if thetas else []
        self._during[id(optimizer)] = thetas, least

    @torch.no_grad()
    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        thetas, least = self._during.pop(id(optimizer), ([], []))
        if thetas:
            torch._foreach_maximum_(thetas, least)


@functools.cache
def hook() -> None:
    register_optimizer_step_pre_hook(before)
    register_optimizer_step_post_hook(after)


def before(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    for floors in list(_all):
        floors.before_step(optimizer)


def after(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    for floors in list(_all):
        floors.after_step(optimizer)
