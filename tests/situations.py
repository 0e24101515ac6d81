"""Situations in which code that knows nothing of filters uses a network with some, and what comes out is looked at."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from networks import kill, relative
from torch import nn

import shrinknets_fast as sn

EXACT = 1e-10
FLOAT32 = 1e-5
NAMES = ("conv", "norm", "flat", "hidden", "norm1", "act", "head")
ALIVE = torch.tensor([1, 0, 1, 1, 0, 0, 1, 1, 1, 1], dtype=torch.float64)[:, None]  # of the hidden layer


def situation(cases, refused=None, needs="torch", tolerance=EXACT):
    """A case of a test that goes through ``cases``. refused: what the error says; needs: the module that it is about."""

    def add(use):
        cases.append(pytest.param(use, refused, needs, tolerance, id=use.__name__))
        return use

    return add


def network(conv, norm, linear, norm1):
    layers = conv(3, 6, 3), norm(6), nn.Flatten(), linear(96, 10), norm1(10), nn.ReLU(), nn.Linear(10, 4)
    model = nn.Sequential()
    for name, layer in zip(NAMES, layers, strict=True):
        model.add_module(name, layer)
    return model.double()


def filtered():
    return network(sn.FilteredConv2d, sn.FilteredBatchNorm2d, sn.FilteredLinear, sn.FilteredBatchNorm1d)


def plain():
    return network(nn.Conv2d, nn.BatchNorm2d, nn.Linear, nn.BatchNorm1d)


@torch.no_grad()
def twins():
    """(a network with features that are dead, its twin of torch's layers), both in evaluation; input (B, 3, 6, 6)."""
    model, twin = filtered(), plain()
    kill(model)
    model.hidden.theta.copy_(torch.where(ALIVE[:, 0] > 0, model.hidden.theta.abs() + 0.1, -0.5))
    for _ in range(3):
        model(inputs())
    state = model.state_dict()
    for key, value in twin.state_dict().items():
        layer, _, name = key.rpartition(".")
        scale = state.get(f"{layer}.theta") if name in ("weight", "bias") else None
        shape = -1, *[1] * (value.dim() - 1)
        value.copy_(state[key] if scale is None else state[key] * scale.clamp(min=0).reshape(shape))
    return model.eval(), twin.eval()


def inputs():
    return torch.randn(8, 3, 6, 6, dtype=torch.float64)


def with_reads(model, hidden=None):
    """The model's forward, by a module that reads the hidden layer's weights."""
    hidden = hidden or model.hidden

    def forward(x):
        h = model.flat(model.norm(model.conv(x)))
        return model.head(model.act(model.norm1(F.linear(h, hidden.weight, hidden.bias))))

    return forward


def in_float(model):
    model = copy.deepcopy(model).float()
    return model, lambda x: model(x.float()).double()


def saved(save, load, thing):
    buffer = io.BytesIO()
    save(thing, buffer)
    buffer.seek(0)
    return load(buffer)


def check_what_is_made(use, refused, needs, tolerance, tmp_path):
    """use(model, x) gives something that computes the model's function, or is refused and has changed nothing."""
    more = () if needs == "torch" else (pytest.importorskip(needs), tmp_path)
    model, x = twins()[0], inputs()
    expected, before = model(x).detach(), copy.deepcopy(model.state_dict())
    if refused is None:
        assert relative(use(model, x, *more)(x).detach(), expected) <= tolerance
        return
    with pytest.raises(Exception, match=refused):
        use(model, x, *more)
    assert torch.equal(model(x), expected) and model.state_dict().keys() == before.keys()
