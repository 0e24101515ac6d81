import copy
import pickle

import pytest
import torch
from networks import conv_net, mlp
from torch import nn
from torch.nn.utils import parametrize, prune

import shrinknets_fast as sn


def test_penalty_is_the_sum_of_live_thetas_and_counts_a_shared_one_once():
    theta = nn.Parameter(torch.tensor([0.5, -2.0, 0.0, 1.0]))
    model = nn.Sequential(
        sn.FilteredLinear(3, 4, theta=theta), sn.FilteredLinear(4, 4, theta=theta), sn.Filter(4, init=0.25)
    )
    total = sn.penalty(model)
    assert float(total) == 2.5 and total.shape == ()
    total.backward()
    assert theta.grad.tolist() == [1, 0, 0, 1]


def test_penalty_of_a_model_without_filters_is_an_error():
    with pytest.raises(sn.ShrinkError, match="penalty: Linear has no filters; add_filters"):
        sn.penalty(nn.Linear(2, 2))


def test_penalty_of_half_thetas_is_summed_wide():
    model = sn.Filter(10_000, init=1.0, dtype=torch.bfloat16)
    assert float(sn.penalty(model)) == 10_000


def test_features_names_every_filter():
    model = conv_net()
    with torch.no_grad():
        model[4].theta[:30] = 0
    assert sn.features(model) == {"0": (8, 8), "2.1": (12, 12), "4": (10, 40), "7": (20, 20)}
    assert sn.features(sn.Filter(3)) == {"": (3, 3)}


def test_param_groups_split_theta_from_weights():
    model = mlp()
    weights, filters = sn.param_groups(model, lr=0.1, filter_lr=0.5, weight_decay=0.01)
    assert (weights["lr"], weights["weight_decay"]) == (0.1, 0.01)
    assert (filters["lr"], filters["weight_decay"]) == (0.5, 0.0)
    assert [id(p) for p in filters["params"]] == [id(model[0].theta), id(model[1].theta)]
    assert len(weights["params"]) + len(filters["params"]) == len(list(model.parameters()))
    assert sn.param_groups(model, lr=0.1)[1]["lr"] == 0.1
    assert len(sn.param_groups(nn.Linear(2, 2), lr=0.1)) == 1
    torch.optim.SGD(sn.param_groups(model, lr=0.1))


@pytest.mark.parametrize(
    "bad", [{"lr": -1}, {"lr": 1, "filter_lr": float("nan")}, {"lr": 1, "weight_decay": float("inf")}]
)
def test_param_groups_names_bad_values(bad):
    name, value = list(bad.items())[-1]
    with pytest.raises(sn.ShrinkError, match=f"{name} is {value}"):
        sn.param_groups(mlp(), **bad)


@pytest.mark.parametrize("affine", [True, False])
def test_convert_sync_batchnorm_would_drop_theta_and_is_refused(affine):
    model = nn.Sequential(nn.Conv2d(1, 4, 3), sn.FilteredBatchNorm2d(4, affine=affine), nn.Conv2d(4, 2, 3))
    for own in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with pytest.raises(TypeError, match="weight"):  # what it reads there is no parameter
            nn.SyncBatchNorm.convert_sync_batchnorm(own)


class Halved(nn.Module):
    def forward(self, theta):
        return theta / 2

    def right_inverse(self, theta):
        return theta * 2


COMPUTED = {
    "pruned": lambda layer: prune.identity(layer, "theta"),
    "parametrized": lambda layer: parametrize.register_parametrization(layer, "theta", Halved()),
}
CALLS = {
    "penalty": lambda model, x: sn.penalty(model),
    "param_groups": lambda model, x: sn.param_groups(model, lr=0.1),
    "collector": sn.GarbageCollector,
    "fold_filters": sn.fold_filters,
    "coverage": sn.coverage,
    "mark_dead": sn.mark_dead,
    "add_filters": sn.add_filters,
}


@pytest.mark.parametrize("how", COMPUTED)
@pytest.mark.parametrize("call", CALLS)
def test_a_theta_that_something_computes_is_refused_in_one_line(how, call):
    model, x = nn.Sequential(sn.FilteredLinear(3, 4), nn.Linear(4, 2)), torch.randn(2, 3)
    COMPUTED[how](model[0])
    with pytest.raises(
        sn.ShrinkError, match="^0.theta is computed by a parametrization or pruning, expected a parameter"
    ):
        CALLS[call](model, x)
