"""Parameter groups that a removal empties: they stay in the optimizer, since schedulers count groups, but not in its checkpoints.

A fresh optimizer for the network that is left has no such group, and torch refuses a checkpoint with another number of them.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch

# indices of the groups that removals emptied
_emptied: weakref.WeakKeyDictionary[torch.optim.Optimizer, set[int]] = weakref.WeakKeyDictionary()


def note_emptied(optimizer: torch.optim.Optimizer, index: int) -> None:
    if optimizer not in _emptied:
        _emptied[optimizer] = set()
        if hasattr(optimizer, "_optimizer_state_dict_post_hooks"):  # not a wrapper's, which has no hooks
            optimizer.register_state_dict_post_hook(without_emptied)
            optimizer.register_load_state_dict_pre_hook(with_emptied)
    _emptied[optimizer].add(index)


def emptied(optimizer: torch.optim.Optimizer) -> list[int]:
    return [i for i in sorted(_emptied[optimizer]) if not optimizer.param_groups[i]["params"]]


def without_emptied(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    gone = emptied(optimizer)
    return {**state, "param_groups": [group for i, group in enumerate(state["param_groups"]) if i not in gone]}


def with_emptied(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    gone, groups = emptied(optimizer), list(state["param_groups"])
    if len(groups) == len(optimizer.param_groups):  # from before they were emptied, or from elsewhere
        return state
    for i in gone:
        groups.insert(i, {**optimizer.param_groups[i], "params": []})
    return {**state, "param_groups": groups}
