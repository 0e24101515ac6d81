"""On random networks with random deaths, a collection changes rounding only. SN_PROPERTY_CASES sets how many are drawn."""

import copy
import os
import warnings

import pytest
import torch
from networks import outputs
from random_networks import random_network, strike

import shrinknets_fast as sn
from shrinknets_fast.companions.guard import Guard
from shrinknets_fast.companions.optimizers import Followed
from shrinknets_fast.graph import order

CASES = int(os.environ.get("SN_PROPERTY_CASES", "200"))
FIRST = int(os.environ.get("SN_PROPERTY_FIRST", "0"))
BATCH = 20
QUICK = 100  # of the default cases, the rest is for make test-full
BATCHES = [
    pytest.param(first, marks=[pytest.mark.slow] if CASES == 200 and first - FIRST >= QUICK else [])
    for first in range(FIRST, FIRST + CASES, BATCH)
]

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=1e-3),
    "Nesterov": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.5, centered=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=0.01),
    "Adamax": lambda p: torch.optim.Adamax(p, lr=0.01),
    "Adadelta": lambda p: torch.optim.Adadelta(p, lr=0.1),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=1e-3),
    "ASGD": lambda p: torch.optim.ASGD(p, lr=0.01),
}


def drawn(seed):
    """A fifth of the networks gets its filters from add_filters, the others have them anywhere."""
    model, x = random_network(seed, filters=seed % 5 != 4)
    if seed % 5 == 4:
        sn.add_filters(model, x)
    return model, x


def check(seed):
    """Two rounds of deaths and collections, then a training step. Returns (deaths, features removed)."""
    model, x = drawn(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    gc = sn.GarbageCollector(model, x, optimizers=optimizer)
    deaths = removed = 0
    for part in range(2):
        deaths += strike(model, 2 * seed + part)
        before = outputs(model, x)
        removed += sum(gc.collect().removed.values())
        for mode, new, old in zip(("train", "eval"), outputs(model, x), before, strict=True):
            assert new.shape == old.shape
            scale = max(float(old.abs().max()), 1e-3)
            worst = float((new - old).abs().max())
            assert worst <= 1e-10 * scale, f"{mode} mode: {worst} of {scale}"
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        assert held == {id(p) for p in model.parameters()}
        optimizer.zero_grad()
        model(x).square().sum().backward()
        for name, p in model.named_parameters():
            assert p.grad is None or p.grad.shape == p.shape, name
        optimizer.step()
        gc.step()
    return deaths, removed


def described(seed, test, *args):
    """Run ``test``; a failure shows the seed and the network."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return test(seed, *args)
    except Exception as error:
        raise AssertionError(f"seed {seed}: {error}\n{drawn(seed)[0]}") from error


@pytest.fixture(autouse=True, params=["slide", "fill"])
def order_of_features(request, monkeypatch):
    """These networks are far too small for a fill to be worth it: in half of the runs it is taken wherever it may be."""
    if request.param == "fill":
        monkeypatch.setattr(order, "WORTH_SHARE", 0)
        monkeypatch.setattr(order, "WORTH_BYTES", 0)
    return request.param


@pytest.mark.parametrize("first", BATCHES)
def test_collecting_changes_nothing(first):
    counts = [described(seed, check) for seed in range(first, min(first + BATCH, FIRST + CASES))]
    deaths, removed = (sum(column) for column in zip(*counts, strict=True))
    assert removed > 0.1 * deaths, "the networks are of no use if next to nothing can leave them"


def train(seed, make, collect):
    """The outputs of 20 steps of training with a penalty that keeps killing."""
    model, x = drawn(seed)
    optimizer = make(model.parameters())
    thetas = [m.theta for m in sn.filters.named_filters(model).values()]
    if collect:
        gc = sn.GarbageCollector(model, x, optimizers=optimizer)
    else:  # the dead stay dead, and in place
        guard = Guard([Followed(optimizer)], lambda: thetas)  # noqa: F841  its hooks live as long as it
    strike(model, seed)
    target, found, removed = torch.randn(3, 3, generator=torch.Generator().manual_seed(seed)), [], 0
    for _ in range(20):
        if collect:
            removed += sum(gc.collect().removed.values())
        optimizer.zero_grad()
        output = model(x)
        penalty = sn.penalty(model) if thetas else 0.0  # some networks are drawn without filters
        (torch.nn.functional.mse_loss(output, target.to(output)) + 0.02 * penalty).backward()
        optimizer.step()
        found.append(output.detach())
    return torch.stack(found), removed


def check_training(seed, make):
    with_it, removed = train(seed, make, True)
    without, _ = train(seed, make, False)
    difference = float((with_it - without).abs().max())
    assert difference <= 1e-6 * max(float(without.abs().max()), 1.0), f"training differs by {difference}"
    return removed


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_is_the_same(name):
    first = 2 * list(OPTIMIZERS).index(name)
    assert sum(described(seed, check_training, OPTIMIZERS[name]) for seed in (first, first + 1)) > 0


def test_a_network_is_the_same_for_the_same_seed():
    first, second = (random_network(7)[0] for _ in range(2))
    assert repr(first) == repr(second)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    copy.deepcopy(first)
