"""A fully sharded model as it was before, on the meta device: what is read and rehearsed in place of the model itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..graph.modules import copied
from ..insides import HOOKS, pytree
from .fsdp import units

MARKS = ("__composable_api_state_key_", "_is_fsdp_managed_module", "_fsdp_use_orig_params")


def plain_twin(model: nn.Module) -> nn.Module:
    """A copy with all sizes and names, without memory, and without what fully_shard added. Ties stay ties."""
    twins: dict[int, Any] = {id(t): as_meta(t) for t in (*model.parameters(), *model.buffers())}
    wrapped = [(unit, type(unit)) for unit in units(model)]
    states = [unit._get_fsdp_state() for unit, _ in wrapped]
    twins.update((id(state), Gone()) for state in states)
    try:
        for unit, kind in wrapped:  # its class refuses to be copied
            unit.__class__ = kind.__bases__[1]
        twin = copied(model, twins)
    finally:
        for unit, kind in wrapped:
            unit.__class__ = kind
    for module in twin.modules():
        take_off(module)
    return twin


class Gone:
    """In place of what fully_shard keeps about a module."""


def as_meta(tensor: torch.Tensor) -> torch.Tensor:
    empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def inputs_as_meta(inputs: Any) -> Any:
    return pytree.tree_map_only(torch.Tensor, lambda t: t.detach().to("meta"), inputs)


def take_off(module: nn.Module) -> None:
    """Hooks and marks of fully_shard."""
    for kind in HOOKS:
        hooks = vars(module).get(kind, {})
        for key in [key for key, hook in hooks.items() if is_of_fsdp(hook)]:
            del hooks[key]
    for name in [name for name in vars(module) if name.startswith(MARKS)]:
        delattr(module, name)


def is_of_fsdp(hook: Any) -> bool:
    function = getattr(hook, "hook", hook)  # torch wraps some
    function = getattr(function, "func", function)
    return getattr(function, "__module__", None) is not None and function.__module__.startswith(
        "torch.distributed.fsdp."
    )
