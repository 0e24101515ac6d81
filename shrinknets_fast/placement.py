"""Filters for an existing model: each where a dead feature would be removable, and nowhere else."""

import torch
from torch import nn

from .errors import ShrinkError
from .filters import named_filters
from .graph.build import build
from .graph.trace import checked_inputs
from .graph.verdict import judge
from .nn import (
    Filter,
    FilteredBatchNorm1d,
    FilteredBatchNorm2d,
    FilteredBatchNorm3d,
    FilteredConv1d,
    FilteredConv2d,
    FilteredConv3d,
    FilteredLinear,
    checked_init,
)

__all__ = ["add_filters"]

FILTERED = {
    kind.plain: kind
    for kind in (
        FilteredLinear,
        FilteredConv1d,
        FilteredConv2d,
        FilteredConv3d,
        FilteredBatchNorm1d,
        FilteredBatchNorm2d,
        FilteredBatchNorm3d,
    )
}


def add_filters(model, example_inputs, *, example_kwargs=None, exclude=(), init=1.0, residual="inner", depth=False):
    """Give an existing model its filters, in place, and return it. With ``init=1.0`` its output does not change.

    A filter goes to the first place after a layer where a dead feature would be zero for every reader: on the layer itself, on
    the batch norm after it (before one, the norm would scale the filter away), or behind an activation with f(0) != 0, as
    ``nn.Sequential(activation, Filter)``. Layers whose features cannot leave (the output's, say) get none. Parameters and
    modules keep their identity.

    exclude: dotted names of modules that get no filter, nor anything inside them.
    """
    checked_init("add_filters", init)
    if residual != "inner" or depth:
        value = f"residual is {residual!r}" if residual != "inner" else f"depth is {depth!r}"
        raise ShrinkError(
            f"add_filters: {value}; this version adds filters inside branches only ('inner', depth=False)"
        )
    names = dict(model.named_modules())
    for name in exclude:
        if name not in names:
            raise ShrinkError(f"add_filters: exclude names {name!r}, which is no module of {type(model).__name__}")
    args, kwargs = checked_inputs(model, example_inputs, example_kwargs)
    network, _, _ = build(model, args, kwargs, {})
    for name, dim, size in places(model, network, tuple(exclude)):
        insert(model, name, dim, size, init)
    return model


def places(model, network, exclude):
    """(module name, dimension, features) of each place for a filter, in the order of the forward."""
    covered = torch.zeros(network.features.count, dtype=torch.bool)
    for module in named_filters(model).values():
        bound = network.bound.get(id(module.theta))
        if bound is not None:
            covered[bound.value.axes[0].ids] = True
    modules = dict(model.named_modules())
    found = []
    for name, calls in network.outputs.items():
        module = modules.get(name)
        excluded = any(name == e or name.startswith(f"{e}.") for e in exclude)
        if (
            excluded or not can_hold(module) or any(len(made) != 1 for made in calls)
        ):  # called twice: no place of its own
            continue
        outputs = [made[-1] for made in calls]
        dim = feature_dim(module, outputs)
        if dim is None or bool(covered[outputs[0].axes[dim].ids].any()):
            continue
        ids = outputs[0].axes[dim].ids
        if bool(judge(network, {}, dict.fromkeys(outputs, dim)).removable[ids].all()):
            covered[ids] = True
            found.append((name, dim, len(ids)))
    return found


def can_hold(module):
    """A layer with a filtered twin, or one of torch.nn's activations with f(0) != 0, to put a filter behind."""
    if type(module) in FILTERED:
        return True
    if not type(module).__module__.startswith("torch.nn.modules.activation") or list(module.parameters()):
        return False
    if isinstance(module, nn.MultiheadAttention):
        return False
    with torch.no_grad():
        return bool((module(torch.zeros(2, 2)) != 0).any())


def feature_dim(module, outputs):
    """The dimension of the output that holds the features, or None. Called several times, or with other axes: None."""
    first = outputs[0]
    if not hasattr(first, "axes") or any(getattr(o, "shape", None) != first.shape for o in outputs):
        return None
    if isinstance(module, nn.Linear):
        dims = [first.ndim - 1]
    elif type(module) in FILTERED:
        dims = [1] if first.ndim > 1 else []
    else:
        dims = [d for d in range(1, first.ndim) if first.axes[d] is not None]
    return dims[0] if len(dims) == 1 and all(o.axes[dims[0]] is not None for o in outputs) else None


def insert(model, name, dim, size, init):
    module = model.get_submodule(name)
    if type(module) in FILTERED:
        parameter = next((p for p in module.parameters()), None)
        factory = {} if parameter is None else {"device": parameter.device, "dtype": parameter.dtype}
        module.__class__ = FILTERED[type(module)]  # the object stays: hooks and references to it stay valid
        module.activation = None
        module.attach_theta(size, init, None, **factory)
        return
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(()))
    filter = Filter(size, dim=dim, init=init, device=like.device, dtype=like.dtype)
    replace(model, module, nn.Sequential(module, filter).train(module.training))


def replace(model, old, new):
    """Put ``new`` wherever ``old`` is registered in ``model``."""
    for parent in list(model.modules()):
        if parent is new:
            continue
        for key, child in list(parent.named_children()):
            if child is old:
                setattr(parent, key, new)
