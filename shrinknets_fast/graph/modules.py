"""Copies of modules, and the sizes that torch.nn modules keep as attributes, set from the tensors they describe."""

import copy

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
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
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise ShrinkError(f"{type(model).__name__} cannot be copied: {error}") from error


def depthwise_names(model):
    """The convolutions whose groups are their channels. Ask before anything shrinks: a grouped one may come to look alike."""
    return {name for name, m in model.named_modules() if isinstance(m, _ConvNd) and 1 < m.groups == m.in_channels}


def sync_sizes(model, depthwise):
    """Set ``in_features``, ``out_channels``, ``groups`` and the like of every module to what its tensors say."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape
        elif isinstance(module, _ConvNd):
            sync_conv(module, name in depthwise)
        elif isinstance(module, _NormBase):
            sync_norm(module)
        elif isinstance(module, nn.PReLU):
            module.num_parameters = module.weight.numel()
        elif isinstance(module, nn.Embedding):
            module.num_embeddings, module.embedding_dim = module.weight.shape


def sync_conv(module, depthwise):
    first, second = module.weight.shape[:2]
    if depthwise:
        module.groups = first * module.groups // (module.in_channels if module.transposed else module.out_channels)
    inputs, outputs = (first, second * module.groups) if module.transposed else (second * module.groups, first)
    module.in_channels, module.out_channels = inputs, outputs


def sync_norm(module):
    tensors = (module.weight, module.running_mean, getattr(module, "theta", None))
    known = next((t for t in tensors if t is not None), None)
    if known is not None:
        module.num_features = known.numel()
