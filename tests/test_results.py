"""Tensors in what a model returns: all of them are outputs, so none of their features leaves."""

import collections
import dataclasses
import types

import pytest
import torch
from torch import nn

import shrinknets_fast as sn


@dataclasses.dataclass
class Dataclass:
    logits: object
    features: object


class Slots:
    __slots__ = ("features", "logits", "unset")

    def __init__(self, logits, features):
        self.logits, self.features = logits, features


class Returns(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.first, self.second, self.wrap = sn.FilteredLinear(10, 12, init=1.0), nn.Linear(12, 3), wrap

    def forward(self, x):
        x = self.first(x)
        return self.wrap(self.second(x), x)


WRAPS = {
    "tuple": lambda a, b: (a, (b, None, 3, "name")),
    "dict": lambda a, b: {"logits": a, "features": [b]},
    "dataclass": Dataclass,
    "namespace": lambda a, b: types.SimpleNamespace(logits=a, features=b),
    "nested": lambda a, b: Dataclass(a, types.SimpleNamespace(deep={"features": b})),
    "user dict": lambda a, b: collections.UserDict(logits=a, features=b),
    "proxy": lambda a, b: types.MappingProxyType({"logits": a, "features": b}),
    "slots": Slots,
    "set": lambda a, b: {a, b},
}


@pytest.mark.parametrize("name", WRAPS)
def test_what_is_returned_stays(name):
    model = Returns(WRAPS[name])
    gc = sn.GarbageCollector(model, torch.randn(2, 10))
    with torch.no_grad():
        model.first.theta[:4] = 0
    assert gc.collect().removed == {} and model.first.out_features == 12


def test_what_cannot_be_looked_into_is_refused():
    model = Returns(lambda a, b: iter((a, b)))
    with pytest.raises(sn.ShrinkError, match="returns a tuple_iterator"):
        sn.GarbageCollector(model, torch.randn(2, 10))
