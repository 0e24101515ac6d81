"""A residual branch whose gate is dead leaves the network and its copies, and its parameters leave the optimizers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..errors import ShrinkError, warn
from ..graph.reading import example_of
from ..graph.rehearse import Rehearsal
from .gated import Gated, gated_at, gated_in

if TYPE_CHECKING:
    from ..companions import Companions
    from ..companions.copies import Copies


class Closing:
    """Knows which branches of a model are to leave, and takes them out of it and of its copies."""

    def __init__(self, model: nn.Module, companions: Companions, is_sharded: bool) -> None:
        self._model, self._companions = model, companions
        self._kept: set[str] = set()  # closed, but they change the shape of their input, so they stay
        if is_sharded and (gated := gated_in(model)):  # fully_shard keeps lists of what it gathers
            self._kept.update(gated)
            what = "fully_shard keeps a branch whose gate is dead, with one feature in each of its layers"
            warn(f"{next(iter(gated))}: {what}; collect before it, or with DistributedDataParallel, to lose it")

    def due(self, dead: Mapping[int, torch.Tensor]) -> dict[str, Gated]:
        """{name: Gated} of those whose gate is dead and that need not stay. dead: {id(theta): mask of its features}."""
        closed = {name: m for name, m in gated_in(self._model).items() if bool(dead[id(m.gate.theta)].all())}
        copies = self._companions.copies
        return {name: m for name, m in closed.items() if name not in self._kept and can_close_copies(copies, name)}

    def close(self, dead: Mapping[int, torch.Tensor], undo: ExitStack) -> tuple[str, ...]:
        """Take out those that are due and return the names of those that went. The model has to be read anew then."""
        branches = self.due(dead)
        if not branches:
            return ()
        shapes = self._output_shapes()
        gone = take_out(self._model, branches, self._companions, lambda: self._output_shapes() == shapes, undo)
        self._kept.update(set(branches) - set(gone))
        return gone

    def _output_shapes(self) -> object:
        example = example_of(self._model)
        assert example is not None  # the model's Reading has left it
        args, kwargs = example
        return Rehearsal(self._model, args, kwargs).output_shapes(self._model)


@torch.no_grad()
def take_out(
    model: nn.Module,
    branches: dict[str, Gated],
    companions: Companions,
    still_runs: Callable[[], bool],
    undo: ExitStack,
) -> tuple[str, ...]:
    """Take the branches out and return the names of those that went; ``undo`` learns how to put them back.

    ``still_runs()`` tells whether the model still does, or raises what the model raises; where it does not, because a branch
    changes the shape of its input, that branch stays as it was.
    """
    before = {id(p) for p in model.parameters()}
    gone = {}
    for name, gated in branches.items():
        branch = gated[0]
        gated.put_stand_in(undo)
        if runs(still_runs):
            gone[name] = gated
        else:
            gated[0] = branch
    left = {id(p) for p in model.parameters()}
    for optimizer in companions.optimizers:
        optimizer.drop(before - left, undo)
    if gone:
        close_copies(companions.copies, gone, undo)
    return tuple(gone)


def runs(still_runs: Callable[[], bool]) -> bool:
    try:
        return still_runs()
    except Exception:
        return False


def can_close_copies(copies: Copies, name: str) -> bool:
    """Whether the branch of this name can leave every copy; of a list, the user counts the entries."""
    return not copies.lists and all(gated_at(module, name) is not None for module in copies.modules)


def close_copies(copies: Copies, branches: dict[str, Gated], undo: ExitStack) -> None:
    """Do to the copies what was done to the model."""
    for name, gated in branches.items():
        for copy in copies.tensors(f"{name}.1.theta", gated.gate.theta):
            if bool((copy > 0).any()):  # only where copies are not waited for
                shut(name, copy, undo)
        for module in copies.modules:
            twin = gated_at(module, name)
            assert twin is not None  # see can_close_copies
            twin.put_stand_in(undo)
    copies.renamed(undo)


def shut(name: str, gate: torch.Tensor, undo: ExitStack) -> None:
    if gate.is_inference():
        raise ShrinkError(
            f"{name}.1.theta: a copy of it was made under torch.inference_mode, where nothing can be changed"
        )
    undo.callback(gate.detach().copy_, gate.clone())
    gate.clamp_(max=0)


def branches_that_left(model: nn.Module, had: Iterable[str], state_dict: Mapping[str, Any]) -> dict[str, Gated]:
    """{prefix of its tensors' names: Gated} of the branches of which a checkpoint has nothing but the closed gate.

    had: the names of the model's own tensors.
    """
    had, found = list(had), {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, Gated) and not module.vanished:
            gate, prefix = state_dict.get(f"{name}.1.theta"), f"{name}.0."
            was, is_there = (any(key.startswith(prefix) for key in keys) for keys in (had, state_dict))
            closed = gate is not None and (gate.is_meta or not bool((gate > 0).any()))
            if closed and was and not is_there:
                found[prefix] = module
    return found
