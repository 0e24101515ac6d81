"""Copies of the model that shrink with it, such as an exponential moving average of its weights."""

import torch
from torch import nn

from .errors import ShrinkError
from .graph.modules import sync_sizes
from .graph.trace import lookup


class Following:
    """``follow``: modules with the model's names (or wrappers with one as ``.module``), dicts of tensors by those names, or
    lists of tensors in the order of ``model.parameters()``."""

    def __init__(self, model, follow):
        given = [follow] if isinstance(follow, (nn.Module, dict)) else list(follow)
        if given and all(isinstance(item, torch.Tensor) for item in given):
            given = [given]
        self._modules = [as_twin(model, item) for item in given if isinstance(item, nn.Module)]
        self._copies = [*self._modules, *(as_names(model, item) for item in given if not isinstance(item, nn.Module))]

    def tensors(self, name, shape):
        """The copies of the model's tensor ``name``; one of another shape is an error."""
        found = []
        for copy in self._copies:
            tensor = copy.get(name) if isinstance(copy, dict) else lookup(copy, name)
            if tensor is None:
                continue
            if tuple(tensor.shape) != tuple(shape):
                raise ShrinkError(f"follow: {name} has shape {tuple(tensor.shape)} there, expected {tuple(shape)}")
            found.append(tensor)
        return found

    def sync(self, depthwise):
        for module in self._modules:
            sync_sizes(module, depthwise)


def as_twin(model, module):
    """The module itself, or the one it wraps, whichever has the model's parameters."""
    names = [name for name, _ in model.named_parameters()]
    for twin in (module, getattr(module, "module", None)):
        if isinstance(twin, nn.Module) and all(isinstance(lookup(twin, name), torch.Tensor) for name in names):
            return twin
    raise ShrinkError(f"follow: {type(module).__name__} does not have the parameters of {type(model).__name__}")


def as_names(model, item):
    """{name: tensor} from a dict, or from a list in the order of the parameters."""
    names = [name for name, _ in model.named_parameters()]
    if isinstance(item, dict):
        unknown = [name for name in item if lookup(model, name) is None]
        if unknown:
            raise ShrinkError(f"follow: {unknown[0]!r} is no tensor of {type(model).__name__}")
        return dict(item)
    tensors = list(item)
    if len(tensors) != len(names):
        raise ShrinkError(f"follow: a list of {len(tensors)} tensors, expected {len(names)} as model.parameters()")
    return dict(zip(names, tensors, strict=True))
