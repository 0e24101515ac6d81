"""A residual branch and its gate, as a module."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

if TYPE_CHECKING:
    from ..nn import Filter


class Gated(nn.Sequential):
    """(branch, gate): the branch of a residual sum and the one theta that closes it.

    Once the gate is dead a collection puts ``nn.Identity`` in the branch's place: the gate's zeros are all that is left of it.
    """

    def __init__(self, branch: nn.Module, gate: Filter) -> None:
        super().__init__(branch, gate)
        self.train(branch.training)

    @property
    def gate(self) -> Filter:
        return cast("Filter", self[1])

    @property
    def vanished(self) -> bool:
        return isinstance(self[0], nn.Identity)

    def put_stand_in(self, undo: ExitStack) -> None:
        """In place of the branch, whose output nobody reads any more; ``undo`` learns how to put it back."""
        if not self.vanished:
            undo.callback(self.__setitem__, 0, self[0])
            self[0] = nn.Identity().train(self.training)


def gated_in(model: nn.Module) -> dict[str, Gated]:
    """{dotted name: Gated} of the branches that are still there."""
    return {name: m for name, m in model.named_modules() if isinstance(m, Gated) and not m.vanished}


def left_in(model: nn.Module) -> list[str]:
    """Names of the branches that have left."""
    return [name for name, m in model.named_modules() if isinstance(m, Gated) and m.vanished]


def gated_at(model: nn.Module, name: str) -> Gated | None:
    try:
        found = model.get_submodule(name)
    except AttributeError:
        return None
    return found if isinstance(found, Gated) else None


class _Nothing(nn.Module):
    """What is left of a closed branch in a plain model: zeros of its input's shape."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(input)


def nothing() -> nn.Module:
    """Traced into a torch.fx module, whose class and code belong to torch, not to this package."""
    return torch.fx.symbolic_trace(_Nothing())
