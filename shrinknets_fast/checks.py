"""What the collector checks of its options, and of a model before it touches it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from .errors import ShrinkError, warn
from .filters import HOW, named_filters

if TYPE_CHECKING:
    from .companions.optimizers import Followed
    from .graph.plan import TensorPlan


def check_gradients(parameters: Iterable[torch.Tensor]) -> None:
    """A graph built before a collection can still deposit a gradient of the old shape: refuse to use it."""
    for p in parameters:
        if p.grad is not None and p.grad.shape != p.shape:
            raise ShrinkError(
                f"a gradient has shape {tuple(p.grad.shape)}, its parameter {tuple(p.shape)}: "
                "backward ran on a graph from before the last collection"
            )


def check_storages(model: nn.Module, planned: Iterable[TensorPlan]) -> None:
    """Parameters that are views of one memory (a flat buffer, a transposed tie) would come apart without a word: refuse."""
    owners: dict[int, list[tuple[str, torch.Tensor]]] = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.numel():
            owners.setdefault(tensor.untyped_storage().data_ptr(), []).append((name, tensor))
    for t in planned:
        sharing = [
            name for name, other in owners.get(t.tensor.untyped_storage().data_ptr(), ()) if other is not t.tensor
        ]
        if sharing:
            raise ShrinkError(
                f"{t.name} shares its memory with {sharing[0]}; only a parameter used as itself can shrink"
            )


def warn_of_no_effect(model: nn.Module, optimizers: Sequence[Followed]) -> None:
    """What no optimizer has does not move: thetas cannot die, and weights left out beside their theta were hardly meant to be."""
    if not named_filters(model):
        warn(f"{type(model).__name__} has no filters, so nothing can die; {HOW}")
    if not optimizers:
        return
    held = {id(p) for optimizer in optimizers for p in optimizer.parameters()}
    for name, module in named_filters(model).items():
        own = {kind: p for kind, p in module.named_parameters(recurse=False) if p.requires_grad}
        missing = [kind for kind, p in own.items() if id(p) not in held]
        if "theta" in missing:
            why = "nothing there can die; make the optimizer after add_filters"
        elif missing and "theta" in own:
            why = f"it will not be trained; take it from parameters(), {type(module).__name__}.{missing[0]} is computed"
        else:
            continue
        warn(f"{name}.{missing[0]} is in none of the optimizers: {why}")
        return


def default_align(model: nn.Module) -> int:
    """8 where tensor cores want it: half types on CUDA."""
    half = (torch.float16, torch.bfloat16)
    return 8 if any(p.is_cuda and p.dtype in half for p in model.parameters()) else 1


def checked_count(name: str, value: int, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ShrinkError(f"GarbageCollector: {name} is {value!r}, expected an integer of at least {least}")
    return value


def checked_share(name: str, value: float, smallest_allowed: bool) -> float:
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1
    if not good or (value == 0 and not smallest_allowed):
        raise ShrinkError(f"GarbageCollector: {name} is {value!r}, expected a number from 0 to 1")
    return float(value)
