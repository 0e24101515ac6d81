"""What is done in place behind a filtered layer trains as behind the plain one."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import shrinknets_fast as sn
from shrinknets_fast.dispatch import PATHS

CHANGES = {
    "relu_": torch.relu_,
    "mul_": lambda y: y.mul_(2),
    "+=": lambda y: y.__iadd__(1.0),
    "/=": lambda y: y.__itruediv__(2.5),
    "silu": lambda y: F.silu(y, inplace=True),
    "dropout": lambda y: F.dropout(y, 0.0, True, True),
    "clamp_": lambda y: y.clamp_(-1, 1),
    "entry": lambda y: y.__setitem__((..., 0), 0.0) or y,
    "view": lambda y: y[..., :1].zero_() is None or y,
}
SHAPES = {"linear": [(4, 6), (2, 4, 6), (6,), (1, 2, 2, 6), (0, 3, 6)], "conv": [(2, 3, 6, 6), (3, 6, 6)]}
SHAPES |= {"norm": [(2, 3, 4, 4)], "filter": [(2, 6), (2, 3, 6)]}


def layer_of(kind, path=None, activation=None):
    layer = {
        "linear": lambda: sn.FilteredLinear(6, 12, activation=activation),
        "conv": lambda: sn.FilteredConv2d(3, 12, 3, activation=activation),
        "norm": lambda: sn.FilteredBatchNorm2d(3),
        "filter": lambda: sn.Filter(6, dim=-1),
    }[kind]()
    layer.path = path
    with torch.no_grad():
        layer.theta[::3] = -0.5
    return layer.double()


def unfused(layer, x):
    """Plain ops, so that what torch allows of their outputs is what is expected."""
    own = dict(layer.named_parameters())
    scale = torch.where(own["theta"] <= 0, 0.0, own["theta"])
    if isinstance(layer, nn.Linear):
        y = F.linear(x, own["weight"], own["bias"]) * scale
    elif isinstance(layer, nn.Conv2d):
        y = F.conv2d(x, own["weight"], own["bias"]) * scale[:, None, None]
    elif isinstance(layer, nn.BatchNorm2d):
        y = F.batch_norm(x, None, None, own["weight"], own["bias"], True) * scale[:, None, None]
    else:
        y = x * scale
    return F.relu(y) if layer.activation else y


def gradients(call, layer, x, change):
    """The changed output with all gradients, or torch's refusal."""
    layer.zero_grad()
    x = x.clone().requires_grad_()
    try:
        y = change(call(x))
        y.square().sum().backward()
    except RuntimeError as error:
        return str(error)
    return [y.detach(), x.grad, *(p.grad for p in layer.parameters())]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", SHAPES)
def test_as_behind_the_plain_layer(kind, change):
    layers = kind in ("linear", "conv")
    paths = [None, *(p for p in PATHS if p != "triton")] if layers else [None]
    for path, activation in itertools.product(paths, [None, "relu"] if layers else [None]):
        layer = layer_of(kind, path, activation)
        for shape in SHAPES[kind]:
            x = torch.randn(shape, dtype=torch.float64)
            got = gradients(layer, layer, x, CHANGES[change])
            expected = gradients(lambda x, own=layer: unfused(own, x), layer, x, CHANGES[change])
            assert isinstance(got, str) == isinstance(expected, str), (path, activation, shape, got, expected)
            if not isinstance(got, str):
                torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("activation", [nn.ReLU(True), nn.SiLU(True), nn.Dropout(0.1, True), nn.Hardtanh(-1, 1, True)])
@pytest.mark.parametrize("shape", [(4, 8), (2, 4, 8), (1, 7, 7, 8)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_modules_behind_a_layer_that_add_filters_filtered(activation, shape, bias):
    model, x = nn.Sequential(nn.Linear(8, 32, bias=bias), activation, nn.Linear(32, 4)), torch.randn(shape)
    sn.add_filters(model, x)
    assert sn.features(model)
    model(x).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
