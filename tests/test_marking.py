"""What another tool has zeroed becomes a dead theta, and leaves."""

import pytest
import torch
from networks import outputs, relative
from torch import nn
from torch.nn.utils import prune

import shrinknets_fast as sn

X = torch.randn(2, 3, 8, 8, dtype=torch.float64)


def net(norm=False):
    norms = [nn.BatchNorm2d(8), nn.BatchNorm2d(6)] if norm else [nn.Identity(), nn.Identity()]
    layers = [
        nn.Conv2d(3, 8, 3),
        norms[0],
        nn.ReLU(),
        nn.Conv2d(8, 6, 3),
        norms[1],
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(96, 3),
    ]
    return nn.Sequential(*layers).double()


def removed_exactly(model, expected):
    optimizer = torch.optim.Adam(model.parameters())
    gc = sn.GarbageCollector(model, X, optimizers=optimizer)
    before = outputs(model, X)
    assert gc.collect().removed == expected
    for old, new in zip(before, outputs(model, X), strict=True):
        assert relative(new, old) < 1e-12
    model(X).sum().backward()
    optimizer.step()
    assert sn.mark_dead(model, X) == {}


@pytest.mark.parametrize("settled", [True, False])
def test_pruned_channels_leave(settled):
    model = net()
    for i in (0, 3):
        prune.ln_structured(model[i], "weight", amount=0.5, n=2, dim=0)
        zero = model[i].weight_mask.flatten(1).sum(1) == 0
        if settled:
            prune.remove(model[i], "weight")
        with torch.no_grad():
            model[i].bias[zero] = 0
    before = outputs(model, X)
    sn.add_filters(model, X)
    assert sn.mark_dead(model, X) == {"0": 4, "3": 3}
    for old, new in zip(before, outputs(model, X), strict=True):
        assert relative(new, old) == 0
    removed_exactly(model, {"0": 4, "3": 3})


def test_a_batch_norm_s_channels_leave():
    model = net(norm=True)
    with torch.no_grad():
        model[1].weight[:3] = model[1].bias[:3] = 0
        model[4].weight[:2], model[4].bias[:2] = 0, 0.3  # what is left of it is not zero
        model[0].weight[4:6] = 0  # before the norm: what it makes of it is not zero
    sn.add_filters(model, X)
    assert sn.mark_dead(model, X) == {"1": 3}
    removed_exactly(model, {"1": 3})


def test_zeros_that_follow_through_ops_that_keep_them():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), sn.Filter(8, init=1.0), nn.Linear(8, 3)).double()
    with torch.no_grad():
        model[0].weight[[1, 5]] = 0
        model[0].bias[[1, 4]] = 0
        model[0].bias[5] = -0.0
    assert sn.mark_dead(model, torch.randn(2, 4, dtype=torch.float64)) == {"2": 2}
    assert model[2].theta.tolist() == [1, 0, 1, 1, 1, 0, 1, 1]


def test_a_shared_theta_is_marked_where_all_its_layers_are_zero():
    theta = nn.Parameter(torch.ones(8))
    model = nn.Sequential(
        sn.FilteredLinear(8, 8, theta=theta), nn.ReLU(), sn.FilteredLinear(8, 8, theta=theta), nn.Linear(8, 2)
    )
    with torch.no_grad():
        for layer, rows in ((model[0], slice(0, 4)), (model[2], slice(2, 6))):
            layer.weight[rows] = 0
            layer.bias[rows] = 0
    assert sn.mark_dead(model, torch.randn(2, 8)) == {"0": 2}
    assert theta.tolist() == [1, 1, 0, 0, 1, 1, 1, 1]


def test_nothing_to_mark():
    model = sn.add_filters(net(), X)
    with torch.no_grad():
        model[0].theta[0] = -1
        model[3].weight[1] = float("nan")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert sn.mark_dead(model, X) == {}
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items() if k != "3.weight")


def test_a_model_without_filters_is_named():
    with pytest.raises(sn.ShrinkError, match="mark_dead: Sequential has no filters; add_filters"):
        sn.mark_dead(net(), X)
