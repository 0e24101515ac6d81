"""A copy of an optimizer that steps on other tensors and leaves the original as it is."""

from __future__ import annotations

import collections
import copy
from collections.abc import Callable
from typing import Any

import torch

from ..errors import ShrinkError


def twin(optimizer: torch.optim.Optimizer, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """A copy of ``optimizer`` for these groups, without state and without hooks. Optimizers inside it are copied likewise."""
    memo = {id(p): torch.empty(0) for group in optimizer.param_groups for p in group["params"]}  # not their memory
    new = object.__new__(type(optimizer))
    for name, value in vars(optimizer).items():
        if name == "state":
            value = collections.defaultdict(dict)
        elif name == "param_groups":
            value = groups
        elif name == "step":  # a scheduler's, which steps the original
            continue
        elif name.startswith("_optimizer_"):
            value = collections.OrderedDict()
        elif isinstance(value, torch.optim.Optimizer):
            value = twin(value, groups)
        elif isinstance(value, torch.nn.Module):
            raise ShrinkError(f"it holds a {type(value).__name__}, so it cannot be tried")
        else:
            value = copy.deepcopy(value, memo)
        new.__dict__[name] = value
    return new


def representatives(optimizer: torch.optim.Optimizer, kind: Callable[[torch.Tensor], Any]) -> list[dict[str, Any]]:
    """The optimizer's groups with one parameter of each ``kind(p)``; groups that differ in their rate alone count once."""
    found, known = [], set()
    for group in optimizer.param_groups:
        options = {name: value for name, value in group.items() if name != "params"}
        same = repr({name: value for name, value in options.items() if name not in ("lr", "initial_lr")})
        new = {}
        for p in group["params"]:
            if p.dim() and (same, kind(p)) not in known:
                known.add((same, kind(p)))
                new[kind(p)] = p
        if new:
            found.append({**moving(copy.deepcopy(options)), "params": list(new.values())})
    return found


def moving(options: dict[str, Any]) -> dict[str, Any]:
    """With a rate that is not zero: at the start of a warm-up nothing would move."""
    rate = options.get("lr")
    if isinstance(rate, torch.Tensor):
        options["lr"] = torch.where(rate == 0, 1e-3, rate)
    elif rate == 0:
        options["lr"] = 1e-3
    return options
