"""Copies of modules, and the sizes that torch.nn modules keep as attributes, set from the tensors they describe."""

import copy
import functools

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils import _pytree as pytree

from ..errors import ShrinkError

EVERY_MODULE = set(vars(nn.Module()))  # the names of its attributes


def copied(model, twins=None):
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


def uncopyable(model, memo):
    """What modules hold that deepcopy refuses, a lock or an open file: a copy shares it."""
    for module in model.modules():
        for name, value in vars(module).items():
            if name not in EVERY_MODULE:
                try:
                    copy.deepcopy(value, dict(memo))
                except Exception:
                    yield value


def make_persistent(model, name):
    """From now on checkpoints hold the buffer with this dotted name."""
    path, _, leaf = name.rpartition(".")
    model.get_submodule(path)._non_persistent_buffers_set.discard(leaf)


class Sizes:
    """``in_features``, ``out_channels``, ``groups`` and the like of a model's torch.nn modules. Made before anything shrinks:
    the convolutions whose groups are their channels are known by that, and a grouped one may come to look alike.
    """

    def __init__(self, model):
        convs = [(name, m) for name, m in model.named_modules() if isinstance(m, _ConvNd)]
        self.depthwise = {name for name, m in convs if 1 < m.groups == m.in_channels}
        self.given = {}  # name -> channels that an instance norm without a tensor was given

    def sync(self, model):
        """Set them to what the tensors of ``model``, a copy or the one that they were made of, say."""
        for name, module in model.named_modules():
            if isinstance(module, _NormBase):
                sync_norm(module, self.given.get(name))
                continue
            shape = shape_of_weight(module)
            if shape is None:
                continue
            if isinstance(module, nn.Linear):
                module.out_features, module.in_features = shape
            elif isinstance(module, _ConvNd):
                sync_conv(module, shape, name in self.depthwise)
            elif isinstance(module, nn.PReLU):
                module.num_parameters = shape.numel()
            elif isinstance(module, nn.Embedding):
                module.num_embeddings, module.embedding_dim = shape

    def watch(self, model):
        """Note what instance norms are given in a forward: without tensors nothing else tells, and torch warns if it differs."""
        for name, module in model.named_modules():
            if isinstance(module, _InstanceNorm) and not tensors_of(module):
                module.register_forward_pre_hook(functools.partial(self._note, name), with_kwargs=True)

    def _note(self, name, module, args, kwargs):
        x = args[0] if args else kwargs["input"]
        module.num_features = self.given[name] = x.shape[-module._get_no_batch_dim()]


def shape_of_weight(module):
    """The shape that ``module.weight`` has, without reading it where that computes: a power iteration changes what it finds."""
    own = module._parameters
    if own.get("weight") is not None:
        return own["weight"].shape
    for name in ("weight_orig", "weight_v"):  # torch.nn.utils.prune and spectral_norm, weight_norm
        if name in own:
            return own[name].shape
    parametrizations = module._modules.get("parametrizations")
    if parametrizations is None or "weight" not in parametrizations:
        return None
    originals = [p for name, p in parametrizations["weight"]._parameters.items() if name.startswith("original")]
    return max((p.shape for p in originals), key=torch.Size.numel, default=None)


def sync_conv(module, shape, depthwise):
    first, second = shape[:2]
    if depthwise:
        module.groups = first * module.groups // (module.in_channels if module.transposed else module.out_channels)
    inputs, outputs = (first, second * module.groups) if module.transposed else (second * module.groups, first)
    module.in_channels, module.out_channels = inputs, outputs


def sync_norm(module, given):
    sizes = [t.numel() for t in tensors_of(module)] or [given]
    if sizes[0] is not None:
        module.num_features = sizes[0]


def tensors_of(norm):
    own = norm._parameters
    return [t for t in (own.get("weight"), norm.running_mean, own.get("theta")) if t is not None]
