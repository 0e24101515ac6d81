"""What can shrink is said, and what cannot."""

import warnings
from collections import OrderedDict

import pytest
import torch
from networks import conv_net, mlp
from torch import nn

import shrinknets_fast as sn


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(16, n) for n in (16, 16, 16, 4))

    def forward(self, x):
        return self.o(nn.functional.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x)))


def mixed():
    return nn.Sequential(nn.Linear(6, 16), nn.Softmax(-1), nn.Linear(16, 5), nn.Softmax(-1), nn.Linear(5, 2))


def said(call):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        call()
    return [str(w.message) for w in found]


def test_a_network_that_can_shrink_gets_no_warning():
    model, x = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3)), torch.randn(2, 8)
    assert said(lambda: sn.add_filters(model, x)) == []
    found = sn.coverage(model, x)
    assert found.parameters == {"0.weight": (256, 1.0), "0.bias": (32, 1.0), "2.weight": (96, 1.0), "2.bias": (3, 0.0)}
    assert found.share == 384 / 387 and found.reasons == {"is the model's output": 3}


def test_no_filter_at_all_is_said_with_the_reasons_and_the_share():
    model, x = mixed(), torch.randn(2, 6)
    (message,) = said(lambda: sn.add_filters(model, x))
    assert message.startswith(
        "add_filters: Sequential got no filter. What keeps the rest: is mixed with others by softmax"
    )
    assert sn.coverage(model, x).share == 0


def test_a_small_share_is_said():
    model, x = Attention(), torch.randn(2, 5, 16)
    (message,) = said(lambda: sn.add_filters(model, x))
    assert message.startswith(
        "add_filters: 38% of the parameters of Attention can shrink. What keeps the rest: sets the scale"
    )
    found = sn.coverage(model, x)
    assert round(found.share, 2) == 0.38 and f"{found.share:.0%} of the parameters could shrink" in str(found)
    assert found.parameters["v.weight"] == (256, 1.0) and found.parameters["q.weight"] == (256, 0.0)


def test_what_add_filters_says_is_what_coverage_finds_afterwards():
    for make, x in ((Attention, torch.randn(2, 5, 16)), (mixed, torch.randn(2, 6))):
        model = make()
        found = said(lambda model=model, x=x: sn.add_filters(model, x, residual="tied"))
        share = sn.coverage(model, x).share
        assert (f"{share:.0%} of the parameters of" in found[0]) if share else ("got no filter" in found[0])


def test_filters_that_are_there_count():
    model, x = mlp(), torch.randn(2, 16, dtype=torch.float64)
    assert said(lambda: sn.add_filters(model, x)) == []
    assert sn.coverage(conv_net(), torch.randn(2, 1, 14, 14, dtype=torch.float64)).share > 0.9


def test_what_the_forward_does_not_use():
    class Partly(nn.Sequential):
        def forward(self, x):
            return self.out(self.used(x))

    parts = {"used": sn.FilteredLinear(4, 8), "out": nn.Linear(8, 2), "unused": nn.Linear(50, 50)}
    found = sn.coverage(Partly(OrderedDict(parts)), torch.randn(2, 4))
    assert found.reasons["the forward does not use it"] == 2550 and found.parameters["unused.weight"] == (2500, 0.0)


def test_a_model_without_parameters():
    assert sn.coverage(nn.ReLU(), torch.randn(2, 4)).share == 0


def test_a_penalty_that_could_do_nothing_is_an_error():
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(
        sn.ShrinkError, match="ProximalL1: optimizer SGD cannot move the filters of a model without any"
    ):
        sn.ProximalL1(optimizer, model, 0.1)
    filtered = sn.FilteredLinear(4, 2)
    with pytest.raises(sn.ShrinkError, match="SGD has no theta of FilteredLinear"):
        sn.ProximalL1(optimizer, filtered, 0.1)
