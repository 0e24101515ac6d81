"""Small networks that several test files use, and ways to kill features in them."""

import copy

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


def trained_alike(model, args, loss, *, rounds=3, steps=4, lr=1e-2, share=0.2, kwargs=None):
    """Train ``model`` with collections of features that die at random, beside a twin that keeps them, zero.

    Returns (largest relative difference of the losses, features removed).
    """
    kwargs = kwargs or {}
    twin = copy.deepcopy(model)
    runs = []
    for m in (model, twin):
        optimizer = torch.optim.Adam(sn.param_groups(m, lr=lr))
        runs.append((m, optimizer, sn.GarbageCollector(m, args, example_kwargs=kwargs, optimizers=optimizer)))
    worst, removed = 0.0, {}
    for k in range(rounds):
        with torch.no_grad():
            names = sn.filters.thetas(model)
            for name, theta in names.items():
                total = theta.numel()
                draws = torch.randperm(total, generator=torch.Generator().manual_seed(k))[: max(int(share * total), 1)]
                if total > 1 + len(draws):
                    kept = runs[0][2].kept(name.removesuffix(".theta"))[draws]
                    theta[draws] = 0
                    sn.filters.thetas(twin)[name][kept] = 0
        for hub, count in runs[0][2].collect().removed.items():
            removed[hub] = removed.get(hub, 0) + count
        for _ in range(steps):
            losses = []
            for m, optimizer, _ in runs:
                optimizer.zero_grad()
                losses.append(loss(m(*args, **kwargs)))
                losses[-1].backward()
                optimizer.step()
            worst = max(worst, relative(losses[0].detach(), losses[1].detach()))
    return worst, removed
