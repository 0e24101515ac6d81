"""Collections by other means, on networks that are one nn.Sequential: by index_select, and by Torch-Pruning."""

import torch
from torch import nn

from .models import Unfused, plain_layer, swapped


@torch.no_grad()
def collect_by_index_select(model, optimizer):
    """The authors' algorithm, written anew: new parameters by index_select, the optimizer's state taken along, gradients dropped.

    model: nn.Sequential of :class:`Unfused` layers, activations, poolings, one flattening, and a plain output layer.
    """
    arrived, total = (
        None,
        None,
    )  # the positions that survive of the features that reach this layer, and how many there were
    for module in model:
        layer = module.layer if isinstance(module, Unfused) else module
        if not isinstance(layer, (nn.Linear, nn.Conv2d)):
            continue
        columns = None
        if arrived is not None:
            block = layer.weight.shape[1] // total  # columns per feature: more than one behind a flattening
            columns = (arrived[:, None] * block + torch.arange(block, device=arrived.device)).flatten()
        rows, total = None, layer.weight.shape[0]
        if isinstance(module, Unfused):
            rows = (module.theta > 0).nonzero().flatten()
            rows = rows if len(rows) else rows.new_zeros(1)
            replace(optimizer, module, "theta", (rows,))
            arrived = rows
        replace(optimizer, layer, "weight", (rows, columns))
        if layer.bias is not None and rows is not None:
            replace(optimizer, layer, "bias", (rows,))
        tell_sizes(layer)


def replace(optimizer, module, name, kept):
    """A new parameter of the positions ``kept`` per dimension in the old one's place, in module and optimizer."""
    old = getattr(module, name)
    new = nn.Parameter(taken(old.detach(), kept))
    setattr(module, name, new)
    for group in optimizer.param_groups:
        group["params"] = [new if p is old else p for p in group["params"]]
    state = optimizer.state.pop(old, {})
    optimizer.state[new] = {key: taken(v, kept) if v.shape == old.shape else v for key, v in state.items()}


def taken(tensor, kept):
    for dim, index in enumerate(kept):
        if index is not None and len(index) < tensor.shape[dim]:
            tensor = tensor.index_select(dim, index)
    return tensor


def tell_sizes(layer):
    kind = ("in_features", "out_features") if isinstance(layer, nn.Linear) else ("in_channels", "out_channels")
    for name, size in zip(kind, (layer.weight.shape[1], layer.weight.shape[0]), strict=True):
        setattr(layer, name, size)


def folded_plain(model):
    """A plain copy of ``model`` whose weights hold the filters: dead features are rows of exact zeros."""

    def fold(filtered):
        layer = plain_layer(filtered)
        scale = filtered.theta.detach().clamp_min(0)
        with torch.no_grad():
            layer.weight = nn.Parameter(layer.weight * scale.view(-1, *[1] * (layer.weight.dim() - 1)))
            layer.bias = nn.Parameter(layer.bias * scale)
        return nn.Sequential(layer, nn.ReLU()) if filtered.activation == "relu" else layer

    return swapped(model, fold)


class TorchPruning:
    """Torch-Pruning's dependency graph of a plain model, built once, as ours is traced once."""

    def __init__(self, model, x, dead):
        """dead: {a layer of ``model``: positions that are exact zeros}"""
        import torch_pruning

        self.model, self.dead = model, dead
        self.prune = {
            nn.Linear: torch_pruning.prune_linear_out_channels,
            nn.Conv2d: torch_pruning.prune_conv_out_channels,
        }
        self.graph = torch_pruning.DependencyGraph().build_dependency(model, x, verbose=False)

    def collect(self, fresh_optimizer):
        """Prune, then a new optimizer: the old one's state fits no more."""
        for layer, positions in self.dead.items():
            self.graph.get_pruning_group(layer, self.prune[type(layer)], positions).prune()
        return fresh_optimizer(self.model.parameters())
