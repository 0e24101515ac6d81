"""Small networks that several test files use, and ways to kill features in them."""

import torch
from torch import nn

import shrinknets_fast as sn


def conv_net(dtype=torch.float64):
    """Conv, batch norm, dense and stand-alone filters, nested modules; input (B, 1, 14, 14)."""
    return nn.Sequential(
        sn.FilteredConv2d(1, 8, 3, activation="relu"),
        nn.MaxPool2d(2),
        nn.Sequential(nn.Conv2d(8, 12, 3), sn.FilteredBatchNorm2d(12), nn.ReLU(inplace=True)),
        nn.Flatten(),
        sn.FilteredLinear(12 * 16, 40, activation="relu"),
        nn.Linear(40, 20),
        nn.Sigmoid(),
        sn.Filter(20),
        nn.Linear(20, 10),
    ).to(dtype)


def mlp(width=32, depth=2, dtype=torch.float64):
    """Input (B, 16), output (B, 4)."""
    layers = []
    for i in range(depth):
        layers.append(sn.FilteredLinear(width if i else 16, width, activation="relu"))
    return nn.Sequential(*layers, nn.Linear(width, 4)).to(dtype)


@torch.no_grad()
def kill(model, share=0.4, seed=0):
    """Make a random share of every filter dead, at least one feature and never all; a shared theta once."""
    generator = torch.Generator().manual_seed(seed)
    for theta in sn.filters.thetas(model).values():
        total = theta.numel()
        count = min(max(1, int(share * total)), total - 1)
        theta[torch.randperm(total, generator=generator)[:count].to(theta.device)] = -0.1


def outputs(model, x):
    """The outputs in train and in eval mode; batch-norm statistics and modes are left as they were."""
    state = {k: v.clone() for k, v in model.state_dict().items()}
    before, found = model.training, []
    for training in (True, False):
        model.train(training)
        with torch.no_grad():
            found.append(model(x))
        with torch.no_grad():
            for k, v in model.state_dict().items():
                v.copy_(state[k])
    model.train(before)
    return found


def relative(after, before):
    return float((after - before).abs().max() / before.abs().max().clamp_min(1e-30))
