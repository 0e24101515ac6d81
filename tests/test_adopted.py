"""Layers of other classes than torch.nn's get a filter too."""

import copy
import pickle
import warnings

import pytest
import torch
from networks import kill, outputs, relative
from test_placement import add, data, filters
from torch import nn

import shrinknets_fast as sn


class NormAct(nn.BatchNorm2d):
    def forward(self, x):
        return torch.relu(super().forward(x))


class Transposed(nn.Module):
    """(in, out), as GPT-2 has it."""

    def __init__(self, n, m):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(n, m) * 0.3), nn.Parameter(torch.randn(m))

    def forward(self, x):
        return torch.addmm(self.bias, x, self.weight)


class Equalised(nn.Module):
    def __init__(self, n, m):
        super().__init__()
        self.weight, self.bias, self.gain = nn.Parameter(torch.randn(m, n)), nn.Parameter(torch.randn(m)), n**-0.5

    def forward(self, x):
        return nn.functional.linear(x, self.weight * self.gain, self.bias)


class Standardised(nn.Conv2d):
    """Its weight is scaled to unit variance, so a filter in it would do nothing until it is zero."""

    def forward(self, x):
        weight = (self.weight - self.weight.mean((1, 2, 3), keepdim=True)) / self.weight.std((1, 2, 3), keepdim=True)
        return nn.functional.conv2d(x, weight, self.bias)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(8, 12), nn.Linear(12, 6), nn.Linear(6, 2)

    def encode(self, x):
        return self.b(torch.relu(self.a(x)))

    def forward(self, x):
        return self.head((self.encode(x[:2]) - self.encode(x[2:])).abs())


NETWORKS = {
    "norm and activation": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3, bias=False),
            NormAct(8),
            nn.Conv2d(8, 6, 3, bias=False),
            NormAct(6),
            nn.Flatten(),
            nn.Linear(24, 2),
        ),
        data(4, 3, 6, 6),
        {"1": "FilteredNormAct", "3": "FilteredNormAct"},
    ),
    "transposed weight": (
        lambda: nn.Sequential(Transposed(5, 12), nn.GELU(), Transposed(12, 3)),
        data(4, 5),
        {"0": "FilteredTransposed"},
    ),
    "equalised": (
        lambda: nn.Sequential(Equalised(5, 12), nn.Tanh(), Equalised(12, 3)),
        data(4, 5),
        {"0": "FilteredEqualised"},
    ),
    "transposed convolution": (
        lambda: nn.Sequential(nn.ConvTranspose2d(3, 8, 2), nn.ReLU(), nn.Conv2d(8, 2, 2)),
        data(4, 3, 6, 6),
        {"0": "FilteredConvTranspose2d"},
    ),
    "called twice": (Twice, data(4, 8), {"a": "FilteredLinear", "b": "FilteredLinear"}),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_what_they_make_leaves(kind):
    make, x, expected = NETWORKS[kind]
    torch.manual_seed(0)
    model = add(make(), x)
    assert filters(model) == expected
    fresh = copy.deepcopy(model)
    kill(model)
    optimizer = torch.optim.Adam(sn.param_groups(model, lr=1e-2))
    gc = sn.GarbageCollector(model, x, optimizers=optimizer)
    twin = copy.deepcopy(model)
    other = torch.optim.Adam(sn.param_groups(twin, lr=1e-2))
    watch = sn.GarbageCollector(twin, x, optimizers=other)  # keeps the dead dead, and removes nothing
    assert set(gc.collect().removed) == set(expected)
    for _ in range(3):
        for m, o in ((model, optimizer), (twin, other)):
            o.zero_grad()
            m(x).square().sum().backward()
            o.step()
    assert watch.plan()
    for old, new in zip(outputs(twin, x), outputs(model, x), strict=True):
        assert relative(new, old) < 1e-11
    plain = sn.fold_filters(model)
    assert not filters(plain) and relative(plain.eval()(x), model.eval()(x)) < 1e-12
    assert not any("Filtered" in type(m).__name__ for m in plain.modules())
    sn.load_state_dict(fresh, model.state_dict())
    assert torch.equal(fresh.eval()(x), model.eval()(x))


def test_pickles_and_copies():
    model = add(nn.Sequential(Transposed(5, 12), nn.GELU(), Transposed(12, 3)), data(4, 5))
    again = pickle.loads(pickle.dumps(model))
    assert type(again[0]) is type(model[0]) is type(copy.deepcopy(model)[0])
    assert torch.equal(again(data(4, 5)), model(data(4, 5)))


def test_not_where_a_filter_in_the_weight_is_scaled_away():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = add(nn.Sequential(Standardised(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 3)), data(2, 3, 6, 6))
    assert filters(model) == {}


def test_a_grouped_transposed_convolution_gets_none():
    """Its weight has the features of one group only."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = add(
            nn.Sequential(nn.ConvTranspose2d(4, 8, 2, groups=2), nn.ReLU(), nn.Conv2d(8, 2, 2)), data(2, 4, 5, 5)
        )
    assert filters(model) == {}
