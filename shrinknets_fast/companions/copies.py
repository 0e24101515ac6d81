"""Copies of the model that shrink with it, such as an exponential moving average of its weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from ..errors import ShrinkError
from ..graph.trace import lookup
from ..wrapped import inwards

Copy = nn.Module | dict[str, torch.Tensor] | Iterable[torch.Tensor]
Follow = nn.Module | dict[str, torch.Tensor] | Iterable[torch.Tensor | Copy]  # of one copy, or several


class Copies:
    """``follow``: modules with the model's names (or wrappers with one as ``.module``), dicts of tensors by those names, or
    lists of tensors in the order of ``model.parameters()``.

    Dicts and lists are the user's own, looked into at each use, because an update may put new tensors there.
    """

    def __init__(self, model: nn.Module, follow: Follow) -> None:
        given = [follow] if isinstance(follow, (nn.Module, dict)) else as_sequence(follow)
        if given and all(isinstance(item, torch.Tensor) for item in given):
            given = [given]
        self._model = model
        self._names = names_of(model)
        self._places = {id(p): i for i, p in enumerate(model.parameters())}
        self.modules = [as_twin(model, item) for item in given if isinstance(item, nn.Module)]
        self._dicts = [checked_dict(model, item) for item in given if isinstance(item, dict)]
        self.lists = [as_sequence(item) for item in given if not isinstance(item, (nn.Module, dict))]
        for name, parameter in model.named_parameters():
            self.tensors(name, parameter)  # what does not fit is an error now, not when something dies

    def __bool__(self) -> bool:
        return bool(self.modules or self._dicts or self.lists)

    def tensors(self, name: str, tensor: torch.Tensor) -> list[torch.Tensor]:
        """The copies of the model's ``tensor``, under whichever of its names; one that does not fit is an error."""
        names = self._names.get(id(tensor), [name])
        found = [lookup(module, n) for module in self.modules for n in names]
        found += [copies.get(n) for copies in self._dicts for n in names]
        if id(tensor) in self._places:
            found += [self._in_list(copies, self._places[id(tensor)]) for copies in self.lists]
        once = {id(copy): copy for copy in found if copy is not None and copy is not tensor}
        for copy in once.values():
            if id(copy) in self._names:
                raise ShrinkError(
                    f"follow: {name} is the model's own {self._names[id(copy)][0]} there, expected a copy"
                )
            check_copy(name, tensor, copy)
        return list(once.values())

    def renamed(self, undo: ExitStack) -> None:
        """The model has lost tensors, or names of them: so do the dicts."""
        undo.callback(setattr, self, "_names", self._names)
        before, self._names = self._names, names_of(self._model)
        for copies in self._dicts:
            undo.callback(refill, copies, dict(copies))
            for key, names in before.items():
                rename(copies, names, self._names.get(key, []))

    def _in_list(self, copies: Sequence[Any], place: int) -> Any:
        if len(copies) != len(self._places):
            raise ShrinkError(
                f"follow: a list of {len(copies)} tensors, expected {len(self._places)} as model.parameters()"
            )
        return copies[place]


def as_sequence(item: Iterable[Any]) -> Sequence[Any]:
    return item if isinstance(item, Sequence) else list(item)


def as_twin(model: nn.Module, module: nn.Module) -> nn.Module:
    """The module itself, or the one it wraps, whichever has the model's parameters."""
    names = [name for name, _ in model.named_parameters()]
    for twin in inwards(module):
        if all(isinstance(lookup(twin, name), torch.Tensor) for name in names):
            return twin
    raise ShrinkError(f"follow: {type(module).__name__} does not have the parameters of {type(model).__name__}")


def checked_dict(model: nn.Module, item: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    unknown = [name for name in item if lookup(model, name) is None]
    if unknown:
        raise ShrinkError(f"follow: {unknown[0]!r} is no tensor of {type(model).__name__}")
    return item


def check_copy(name: str, tensor: torch.Tensor, copy: object) -> None:
    if not isinstance(copy, torch.Tensor):
        raise ShrinkError(f"follow: {name} is a {type(copy).__name__} there, expected a tensor")
    if copy.shape != tensor.shape:
        raise ShrinkError(f"follow: {name} has shape {tuple(copy.shape)} there, expected {tuple(tensor.shape)}")
    strided = copy.layout == tensor.layout == torch.strided
    if strided and copy.device == tensor.device and copy.data_ptr() == tensor.data_ptr() != 0:
        raise ShrinkError(f"follow: {name} is the parameter's own memory there, expected a copy")


def names_of(model: nn.Module) -> dict[int, list[str]]:
    """{id(tensor): all its names}: a tied parameter has several."""
    names: dict[int, list[str]] = {}
    named = (model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
    for name, tensor in (pair for pairs in named for pair in pairs):
        names.setdefault(id(tensor), []).append(name)
    return names


def rename(copies: dict[str, torch.Tensor], before: Iterable[str], after: Sequence[str]) -> None:
    """Take a tensor's entries under names it has lost out of the dict; it keeps one under a name it still has."""
    lost = [copies.pop(name) for name in before if name not in after and name in copies]
    if lost and after and not any(name in copies for name in after):
        copies[after[0]] = lost[0]


def refill(copies: dict[str, torch.Tensor], before: dict[str, torch.Tensor]) -> None:
    copies.clear()
    copies.update(before)
