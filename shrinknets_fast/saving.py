"""Checkpoints in another library's format: a Hugging Face config must say what the tensors are, or nobody can open the folder."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from .errors import ShrinkError, warn
from .filters import named_filters
from .pretrained import apply, fitting_changes, made_from

Example = tuple[Any, Any]  # args, kwargs


def check_saves(model: nn.Module, example: Example | None = None) -> None:
    """From now on ``model.save_pretrained`` looks first, where it has that. example: inputs of its forward, for a trial."""
    if hasattr(type(model), "save_pretrained") and hasattr(model, "config"):
        own: Any = model
        own.save_pretrained = CheckedSave(model, example)


class CheckedSave:
    """``save_pretrained`` of one model, as an attribute in front of its method."""

    def __init__(self, model: nn.Module, example: Example | None = None) -> None:
        self.model: Any = model
        self._example = example

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if named_filters(self.model):
            warn(
                "save_pretrained keeps weights and thetas apart, and from_pretrained drops the thetas: open it with add_filters "
                "and shrinknets_fast.load_state_dict, or save what fold_filters(model) gives",
            )
        elif (found := first_misfit(self.model)) is not None:
            changes = fitting_changes(self.model, self._example)
            if changes is None:
                name, shape, expected = found
                raise ShrinkError(
                    f"save_pretrained: {name} has shape {shape}, its config makes {expected}, so from_pretrained could not "
                    "open it, and no number of the config says so; fold_filters(model, uniform=...) gives layers one width"
                )
            apply(self.model.config, changes)
        return type(self.model).save_pretrained(self.model, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> CheckedSave:
        return CheckedSave(copy.deepcopy(self.model, memo), self._example)

    def __reduce__(self) -> tuple[Any, ...]:
        """Loaded elsewhere it is the plain method: a folded model needs no package of ours."""
        return getattr, (self.model, "save_pretrained")


def first_misfit(model: nn.Module) -> tuple[str, str | tuple[int, ...], str | tuple[int, ...]] | None:
    """(name, shape, shape by the config) of the first tensor that a model made from its config has otherwise, or None."""
    expected, own = made_from(model, model.config), model.state_dict()
    for name, tensor in own.items():
        shape = expected[name].shape if name in expected else None
        if shape != tensor.shape:
            return name, tuple(tensor.shape), "no such tensor" if shape is None else tuple(shape)
    return next(
        ((name, "no such tensor", tuple(tensor.shape)) for name, tensor in expected.items() if name not in own), None
    )
