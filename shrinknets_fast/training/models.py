"""The paper's two networks: Xavier-uniform weights with gain sqrt(2), theta ~ U(0, 1]."""

import math
import os
from collections import OrderedDict

import torch
from torch import nn

from ..folded import unfolded
from ..nn import FilteredConv2d, FilteredLinear
from .refusal import Refusal

CHANNELS = 50  # of both convolutions of LeNet-5, where the paper's runs start
CLASSES = 10


def build(arguments, image_shape):
    """A fresh model for images of ``image_shape`` (C, H, W), on the CPU."""
    make = MAKERS[arguments.model]
    with torch.device("meta"):
        refuse_too_large(arguments, make(image_shape, arguments.width, arguments.depth))
    model = make(image_shape, arguments.width, arguments.depth)
    with unfolded():
        for module in model.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.xavier_uniform_(module.weight, gain=math.sqrt(2))
                assert module.bias is not None  # all have one
                nn.init.zeros_(module.bias)
    return model


def refuse_too_large(arguments, model):
    """Before the kernel would end the process: weights, gradients and Adam's two moments must fit into the machine."""
    needed = 4 * sum(p.numel() * p.element_size() for p in model.parameters())
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > there:
        sizes = f"{needed / 2**30:,.0f} GiB of memory, this machine has {there / 2**30:,.0f}"
        raise Refusal(f"--width {arguments.width} with --depth {arguments.depth} needs {sizes}")


def mlp(image_shape, width, depth):
    return nn.Sequential(OrderedDict(flatten=nn.Flatten(), **dense(math.prod(image_shape), width, depth)))


def lenet5(image_shape, width, depth):
    channels, *sides = image_shape
    padding = 2 if min(sides) < 16 else 0  # two unpadded 5x5 convolutions and poolings need 16x16 pixels
    for _ in range(2):
        sides = [(side + 2 * padding - 4) // 2 for side in sides]
    layers = OrderedDict(
        conv1=FilteredConv2d(channels, CHANNELS, 5, padding=padding, activation="relu"),
        pool1=nn.MaxPool2d(2),
        conv2=FilteredConv2d(CHANNELS, CHANNELS, 5, padding=padding, activation="relu"),
        pool2=nn.MaxPool2d(2),
        flatten=nn.Flatten(),
        **dense(CHANNELS * math.prod(sides), width, depth),
    )
    return nn.Sequential(layers)


def dense(in_features, width, depth):
    """{name: layer} of ``depth`` hidden layers and the output."""
    layers: dict[str, nn.Module] = {}
    for k in range(1, depth + 1):
        layers[f"hidden{k}"] = FilteredLinear(in_features, width, activation="relu")
        in_features = width
    layers["output"] = nn.Linear(in_features, CLASSES)
    return layers


MAKERS = {"mlp": mlp, "lenet5": lenet5}


def weight_count(model):
    """Weights and biases without the filters: the size of the plain network."""
    return sum(p.numel() for name, p in model.named_parameters() if name.rpartition(".")[2] != "theta")
