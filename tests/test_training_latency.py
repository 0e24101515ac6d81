"""Latency of the plain network, before and after."""

from argparse import Namespace

import pytest
import torch
from torch import nn

from shrinknets_fast.training.latency import latency, unfiltered
from shrinknets_fast.training.models import build

SHAPE = (1, 8, 8)


def arguments(model="mlp", width=20, batch_size=16):
    return Namespace(model=model, width=width, depth=2, batch_size=batch_size)


@pytest.mark.parametrize("model", ["mlp", "lenet5"])
def test_before_is_the_plain_network_of_the_same_widths(model):
    filtered = build(arguments(model), SHAPE)
    x = torch.randn(3, *SHAPE)
    expected = filtered(x).detach()
    plain = unfiltered(filtered)
    assert all(type(m).__module__.startswith("torch.nn") for m in plain.modules())
    assert plain.hidden1[0].out_features == plain.hidden2[0].in_features == 20
    torch.testing.assert_close(plain(x).detach(), expected)


def test_milliseconds_of_both_networks_for_one_image_and_the_training_s_batch():
    small = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).train()
    found = latency(arguments(width=2000), SHAPE, small, torch.device("cpu"))
    assert list(found) == ["batch 1", "batch 16"]
    for times in found.values():  # 4 million weights more
        assert 1e-4 < times["after"] < times["before"] < 5e3
    assert small.training
    assert list(latency(arguments(batch_size=1), SHAPE, small, torch.device("cpu"))) == ["batch 1"]
