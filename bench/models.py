"""The networks of the benchmarks, and the same network plain (no filter) and unfused (the authors' composition)."""

import copy

import torch
import torch.nn.functional as F
from torch import nn

import shrinknets_fast as sn
from shrinknets_fast.nn import FilterBase

from .registry import needed


class Unfused(nn.Module):
    """A plain layer, then a multiplication by ``max(0, theta)`` of its whole output: what the authors' code does."""

    def __init__(self, layer, filtered):
        super().__init__()
        self.layer, self.theta, self.activation = layer, filtered.theta, filtered.activation
        self.dim = -1 if isinstance(filtered, nn.Linear) else getattr(filtered, "dim", 1)

    def forward(self, input):
        output = self.layer(input)
        shape = [1] * output.dim()
        shape[self.dim] = -1
        output = output * self.theta.clamp_min(0).view(shape)
        return F.relu(output) if self.activation == "relu" else output


class UnfusedNorm(nn.Module):
    """Layer or RMS norm with the statistics of the alive features, in torch's own operations."""

    def __init__(self, filtered):
        super().__init__()
        self.theta, self.weight, self.bias = filtered.theta, filtered.raw("weight"), filtered.raw("bias")
        self.eps, self.centres = filtered.eps, isinstance(filtered, nn.LayerNorm)

    def forward(self, input):
        alive = self.theta > 0
        kept, count = torch.where(alive, input, 0), alive.sum()
        if self.centres:
            kept = torch.where(alive, kept - kept.sum(-1, keepdim=True) / count, 0)
        kept = kept * (kept.square().sum(-1, keepdim=True) / count + self.eps).rsqrt() * self.weight
        return (kept if self.bias is None else kept + self.bias) * self.theta.clamp_min(0)


def plain_layer(filtered):
    """The torch.nn layer that ``filtered`` extends, with the same parameters and buffers (nn.Identity for a Filter)."""
    if filtered.plain is None:
        return nn.Identity()
    layer = copy.copy(filtered)
    layer._parameters = {name: p for name, p in filtered._parameters.items() if name != "theta"}
    layer.__class__ = filtered.plain
    return layer


def plain(filtered):
    layer = plain_layer(filtered)
    return nn.Sequential(layer, nn.ReLU()) if filtered.activation == "relu" else layer


def unfused(filtered):
    if isinstance(filtered, (nn.LayerNorm, nn.RMSNorm)):
        return UnfusedNorm(filtered)
    return Unfused(plain_layer(filtered), filtered)


def swapped(model, make):
    """A deep copy of ``model`` with every filtered layer replaced by ``make(layer)``."""
    model = copy.deepcopy(model)
    if isinstance(model, FilterBase):
        return make(model)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, FilterBase):
                setattr(module, name, make(child))
    return model


def xavier(model):
    """The paper's initial weights: Xavier-uniform with gain sqrt(2), zero biases."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.xavier_uniform_(module.weight, gain=2**0.5)
            nn.init.zeros_(module.bias)
    return model


def mlp(width, depth=1, inputs=784, outputs=10, init="uniform", device=None):
    layers = []
    for _ in range(depth):
        layers.append(sn.FilteredLinear(inputs, width, activation="relu", init=init, device=device))
        inputs = width
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(inputs, outputs, device=device))


def lenet5(channels=50, width=5000, side=28, init="uniform", device=None):
    """Two 5x5 convolutions, two poolings, one dense layer; ``side`` below 16 is padded by 2."""
    options = {"init": init, "activation": "relu", "device": device}
    padding = 2 if side < 16 else 0
    for _ in range(2):
        side = (side + 2 * padding - 4) // 2
    return nn.Sequential(
        sn.FilteredConv2d(1, channels, 5, padding=padding, **options),
        nn.MaxPool2d(2),
        sn.FilteredConv2d(channels, channels, 5, padding=padding, **options),
        nn.MaxPool2d(2),
        nn.Flatten(),
        sn.FilteredLinear(channels * side * side, width, **options),
        nn.Linear(width, 10, device=device),
    )


def resnet18(side, device):
    """torchvision's, with filters inside the branches; theta spread over (0.5, 1.5) so that a wrong scale shows."""
    model = needed("torchvision.models").resnet18(num_classes=10).to(device)
    sn.add_filters(model, torch.randn(2, 3, side, side, device=device))
    with torch.no_grad():
        for theta in sn.filters.thetas(model).values():
            theta.uniform_(0.5, 1.5)
    return model


@torch.no_grad()
def kill(model, share):
    """A random share of every filter dies: at least one feature, never all."""
    for theta in sn.filters.thetas(model).values():
        count = min(max(1, round(share * theta.numel())), theta.numel() - 1)
        theta[torch.randperm(theta.numel(), device=theta.device)[:count]] = -0.1
