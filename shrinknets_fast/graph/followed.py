"""Sizes that the user's modules keep as attributes, ``self.num_heads`` say: they follow the tensors that shrink."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

KEY = "_shrinking_sizes"  # on the model, so that copies and checkpoints' fresh models have them


@dataclass(frozen=True)
class Followed:
    """``attribute`` of the module at ``path`` is ``numerator / denominator`` of dimension ``dim`` of the tensor ``name``."""

    path: str
    attribute: str
    name: str
    dim: int
    numerator: int
    denominator: int

    def value(self, tensors: Mapping[str, torch.Tensor]) -> int:
        return tensors[self.name].shape[self.dim] * self.numerator // self.denominator


def followed_by(model: nn.Module) -> list[Followed]:
    return list(vars(model).get(KEY, []))


def follow(model: nn.Module, followed: Iterable[Followed]) -> None:
    vars(model)[KEY] = [*followed_by(model), *followed]


def sync_followed(model: nn.Module, followed: Iterable[Followed]) -> None:
    """Set the attributes to what the tensors of ``model`` say."""
    followed = list(followed)
    if followed:
        tensors = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
        for entry in followed:
            setattr(model.get_submodule(entry.path), entry.attribute, entry.value(tensors))
