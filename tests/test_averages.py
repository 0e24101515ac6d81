"""Averages of networks are averages of their parameters, whoever makes them."""

import copy

import pytest
import torch
from networks import relative
from situations import EXACT, filtered, inputs, twins
from torch.optim import swa_utils

import shrinknets_fast as sn


def moved(model):
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return other


def swa(model, then):
    average = swa_utils.AveragedModel(model)
    for m in (model, then):
        average.update_parameters(m)
    return average.module, 0.5


def ema(model, then):
    average = swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=True)
    for m in (model, then):
        average.update_parameters(m)
    return average.module, 0.1


def soup(model, then):
    average = filtered().eval()
    states = model.state_dict(), then.state_dict()
    average.load_state_dict(
        {k: v.lerp(states[1][k], 0.3) if v.is_floating_point() else v for k, v in states[0].items()}
    )
    return average, 0.3


def timm_ema(model, then):
    average = pytest.importorskip("timm.utils").ModelEmaV3(model, decay=0.9)
    average.update(then)
    return average.module, 0.1


def ema_pytorch(model, then):
    average = pytest.importorskip("ema_pytorch").EMA(model, beta=0.9, update_after_step=-1, update_every=1)
    average.update()
    with torch.no_grad():
        average.ema_model.load_state_dict(model.state_dict())
    average.update_moving_average(average.ema_model, then, current_decay=0.9)
    return average.ema_model, 0.1


@pytest.mark.parametrize("averaged", [swa, ema, soup, timm_ema, ema_pytorch])
def test_an_average_is_one_of_parameters(averaged):
    model, x = twins()[0], inputs()
    then = moved(model)
    average, share = averaged(model, then)
    expected = copy.deepcopy(model)
    with torch.no_grad():
        for p, q in zip(expected.parameters(), then.parameters(), strict=True):
            p.lerp_(q, share)
    assert relative(average.eval()(x), expected(x)) < 1e-6  # some keep their decay in float32
    assert relative(average(x), sn.fold_filters(average, x)(x)) < EXACT


def test_update_bn_averages_what_the_filters_let_through():
    model, twin = twins()
    batches = [inputs() for _ in range(3)]
    for m in (model, twin):
        swa_utils.update_bn(batches, m)
    x = inputs()
    assert relative(model.eval()(x), twin.eval()(x)) < EXACT
