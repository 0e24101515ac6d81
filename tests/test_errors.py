"""Warnings point at the code that can do something about them."""

import warnings

import pytest
import torch
from networks import mlp
from torch import nn

import shrinknets_fast as sn


class Unknown(nn.Module):
    def forward(self, x):
        return torch.fft.fft(x).real


X = torch.randn(4, 16)
CALLS = {
    "no filters": lambda: sn.GarbageCollector(nn.Linear(16, 3), X),
    "nothing placed": lambda: sn.add_filters(nn.Linear(16, 3), X),
    "no rule": lambda: sn.GarbageCollector(nn.Sequential(sn.FilteredLinear(16, 8), Unknown(), nn.Linear(8, 2)), X),
    "another step": lambda: trained(torch.optim.Adafactor),
    "in no optimizer": lambda: trained(lambda parameters: torch.optim.SGD(list(parameters)[:1], lr=0.1)),
    "padding": lambda: all_dead().collect(),
}


def trained(make):
    model = mlp(dtype=torch.float32)
    return sn.GarbageCollector(model, X, optimizers=make(model.parameters()))


def all_dead():
    model = mlp(dtype=torch.float32)
    gc = sn.GarbageCollector(model, X)
    with torch.no_grad():
        model[0].theta.zero_()
    return gc


@pytest.mark.parametrize("name", CALLS)
def test_a_warning_is_at_the_caller_s_line(name):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        CALLS[name]()
    assert said and {w.filename for w in said} == {__file__}
