"""Copies of modules, and the sizes that torch.nn modules keep as attributes, set from the tensors they describe."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from ..errors import ShrinkError
from ..insides import ConvNd, InstanceNorm, NormBase, pytree
from .followed import followed_by, sync_followed

Model = TypeVar("Model", bound=nn.Module)
EVERY_MODULE = set(vars(nn.Module()))  # the names of its attributes


def copied(model: Model, twins: Mapping[int, torch.Tensor] | None = None) -> Model:
    """A deep copy with ``twins`` ({id: tensor}) in place of their originals.

    Tensors that modules keep beside parameters and buffers are detached: deepcopy refuses what autograd made, such as an
    activation that the last forward left there.
    """
    memo = dict(twins or {})
    registered = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    for module in model.modules():
        own = [value for name, value in vars(module).items() if name not in EVERY_MODULE]
        for leaf in pytree.tree_leaves(own):
            if isinstance(leaf, torch.Tensor) and not isinstance(leaf, nn.Parameter) and id(leaf) not in registered:
                memo[id(leaf)] = leaf.detach().clone()
    try:
        return copy.deepcopy(model, dict(memo))
    except Exception:
        memo.update((id(value), value) for value in uncopyable(model, memo))
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise ShrinkError(f"{type(model).__name__} cannot be copied: {error}") from error


def uncopyable(model: nn.Module, memo: Mapping[int, Any]) -> Iterator[Any]:
    """What modules hold that deepcopy refuses, a lock or an open file: a copy shares it."""
    for module in model.modules():
        for name, value in vars(module).items():
            if name not in EVERY_MODULE:
                try:
                    copy.deepcopy(value, dict(memo))
                except Exception:
                    yield value


def make_persistent(model: nn.Module, name: str) -> None:
    """From now on checkpoints hold the buffer with this dotted name."""
    path, _, leaf = name.rpartition(".")
    model.get_submodule(path)._non_persistent_buffers_set.discard(leaf)


class Sizes:
    """``in_features``, ``out_channels``, ``groups`` and the like of a model's torch.nn modules. Made before anything shrinks:
    the convolutions whose groups are their channels are known by that, and a grouped one may come to look alike.
    """

    def __init__(self, model: nn.Module) -> None:
        convs = [(name, m) for name, m in model.named_modules() if isinstance(m, ConvNd)]
        self.depthwise = {name for name, m in convs if 1 < m.groups == m.in_channels}
        self.given: dict[str, int] = {}  # name -> channels that an instance norm without a tensor was given
        self.followed = followed_by(model)

    def sync(self, model: nn.Module) -> None:
        """Set them to what the tensors of ``model``, a copy or the one that they were made of, say."""
        sync_followed(model, self.followed)
        for name, module in model.named_modules():
            if isinstance(module, NormBase):
                sync_norm(module, self.given.get(name))
                continue
            if isinstance(module, (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)):
                sync_norm_over_features(module)
                continue
            if isinstance(module, nn.RNNBase):
                own: Any = module._parameters
                module.input_size, module.hidden_size = (own[f"weight_{kind}_l0"].shape[1] for kind in ("ih", "hh"))
                continue
            shape = shape_of_weight(module)
            if shape is None:
                continue
            if isinstance(module, nn.Linear):
                module.out_features, module.in_features = shape
            elif isinstance(module, ConvNd):
                sync_conv(module, shape, name in self.depthwise)
            elif isinstance(module, nn.PReLU):
                module.num_parameters = shape.numel()
            elif isinstance(module, nn.Embedding):
                module.num_embeddings, module.embedding_dim = shape

    def watch(self, model: nn.Module) -> None:
        """Note what instance norms are given in a forward: without tensors nothing else tells, and torch warns if it differs."""
        for name, module in model.named_modules():
            if isinstance(module, InstanceNorm) and not tensors_of(module):
                module.register_forward_pre_hook(functools.partial(self._note, name), with_kwargs=True)

    def _note(self, name: str, module: InstanceNorm, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else kwargs["input"]
        module.num_features = self.given[name] = x.shape[-module._get_no_batch_dim()]


def shape_of_weight(module: nn.Module) -> torch.Size | None:
    """The shape that ``module.weight`` has, without reading it where that computes: a power iteration changes what it finds."""
    own = module._parameters
    for name in ("weight", "weight_orig", "weight_v"):  # torch.nn.utils.prune and spectral_norm, weight_norm
        if (tensor := own.get(name)) is not None:
            return tensor.shape
    parametrizations: Any = module._modules.get("parametrizations")
    if parametrizations is None or "weight" not in parametrizations:
        return None
    originals = [p for name, p in parametrizations["weight"]._parameters.items() if name.startswith("original")]
    return max((p.shape for p in originals), key=torch.Size.numel, default=None)


def sync_conv(module: ConvNd, shape: torch.Size, depthwise: bool) -> None:
    first, second = shape[:2]
    if depthwise:
        module.groups = first * module.groups // (module.in_channels if module.transposed else module.out_channels)
    inputs, outputs = (first, second * module.groups) if module.transposed else (second * module.groups, first)
    module.in_channels, module.out_channels = inputs, outputs


def sync_norm(module: NormBase, given: int | None) -> None:
    size = next((t.numel() for t in tensors_of(module)), given)
    if size is not None:
        module.num_features = size


def sync_norm_over_features(module: nn.LayerNorm | nn.RMSNorm | nn.GroupNorm) -> None:
    """It shrinks along its only dimension."""
    vector = module._parameters.get("weight")
    if vector is None:
        vector = module._parameters.get("theta")
    if vector is not None and isinstance(module, nn.GroupNorm):
        module.num_channels = vector.numel()
    elif vector is not None and not isinstance(module, nn.GroupNorm) and len(module.normalized_shape) == 1:
        module.normalized_shape = (vector.numel(),)


def tensors_of(norm: NormBase) -> list[torch.Tensor]:
    own = norm._parameters
    return [t for t in (own.get("weight"), norm.running_mean, own.get("theta")) if t is not None]
