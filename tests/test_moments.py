"""Thetas that are set at odd times, and by any means."""

import pytest
import torch
from torch import nn

import shrinknets_fast as sn

MOMENTS = {
    "forward pre-hook": lambda model, optimizer, kill: model[0].register_forward_pre_hook(kill),
    "forward hook": lambda model, optimizer, kill: model[0].register_forward_hook(kill),
    "backward pre-hook": lambda model, optimizer, kill: model[0].register_full_backward_pre_hook(kill),
    "backward hook": lambda model, optimizer, kill: model[0].register_full_backward_hook(kill),
    "hook of theta": lambda model, optimizer, kill: model[0].theta.register_hook(kill),
    "gradient arrives": lambda model, optimizer, kill: model[0].theta.register_post_accumulate_grad_hook(kill),
    "gradient arrives elsewhere": lambda model, optimizer, kill: model[2].weight.register_hook(kill),
    "step pre-hook": lambda model, optimizer, kill: optimizer.register_step_pre_hook(kill),
    "step post-hook": lambda model, optimizer, kill: optimizer.register_step_post_hook(kill),
    "learning-rate schedule": lambda model, optimizer, kill: torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda epoch: 1.0 if kill() is None else 0.0
    ),
}
OPTIMIZERS = {
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam foreach": lambda p: torch.optim.AdamW(p, lr=0.02, foreach=True),
    "adam fused": lambda p: torch.optim.Adam(p, lr=0.02, fused=True),
}


def small():
    torch.manual_seed(0)
    return nn.Sequential(sn.FilteredLinear(6, 12), nn.Tanh(), nn.Linear(12, 3)).double()


def trained(model, optimizer, batches, between=lambda: None):
    found = []
    for x in batches:
        loss = -model(x).tanh().sum() - model[0].theta.relu().sum()  # wants theta to grow
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        between()
        found.append(loss.detach())
    return torch.stack(found)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("moment", MOMENTS)
def test_dead_at_an_odd_time_stays_dead_and_leaves_exactly(moment, optimizer):
    batches = torch.randn(8, 5, 6, dtype=torch.float64)
    runs = []
    for collects in (True, False):
        model = small()
        own = OPTIMIZERS[optimizer](model.parameters())
        gc = sn.GarbageCollector(model, batches[0], optimizers=own)
        now = []

        def kill(*_, model=model, now=now):
            if now:
                now.clear()
                model[0].theta.data[:4] = 0

        made = MOMENTS[moment](model, own, kill)
        between = made.step if isinstance(made, torch.optim.lr_scheduler.LRScheduler) else lambda: None
        trained(model, own, batches[:3], between)
        now.append(True)
        trained(model, own, batches[3:4], between)
        assert not now, "the moment never came"
        trained(model, own, batches[4:5], between)
        assert (model[0].theta[:4] == 0).all() and (model[0].theta[4:] > 0).all()
        assert not collects or gc.collect().removed == {"0": 4}
        runs.append(trained(model, own, batches[5:], between))
    torch.testing.assert_close(*runs, rtol=1e-11, atol=1e-11)


def test_between_unscaling_and_clipping():
    model, x = small(), torch.randn(5, 6, dtype=torch.float64)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    gc, scaler = sn.GarbageCollector(model, x, optimizers=optimizer), torch.amp.GradScaler("cpu", init_scale=4.0)
    for step in range(4):
        optimizer.zero_grad()
        scaler.scale(-model(x).square().sum()).backward()
        scaler.unscale_(optimizer)
        if step == 2:
            model[0].theta.data[:4] = 0
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        scaler.step(optimizer)
        scaler.update()
    assert gc.collect().removed == {"0": 4}


def test_optimizers_that_step_inside_backward():
    runs, batches = [], torch.randn(8, 5, 6, dtype=torch.float64)
    for collects in (True, False):
        model = small()
        own = {p: torch.optim.Adam([p], lr=0.02) for p in model.parameters()}
        gc = sn.GarbageCollector(model, batches[0], optimizers=own.values())
        for p in own:
            p.register_post_accumulate_grad_hook(lambda p, own=own: (own[p].step(), own[p].zero_grad()) and None)
        losses = []
        for k, x in enumerate(batches):
            loss = -model(x).square().sum()
            if k == 3:
                model[0].theta.data[:4] = 0  # between forward and backward
            loss.backward()
            losses.append(loss.detach())
            assert k < 3 or collects or (model[0].theta == 0).sum() == 4
            if collects and k == 4:
                assert gc.collect().removed == {"0": 4}
        runs.append(torch.stack(losses))
    torch.testing.assert_close(*runs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    "setting",
    [
        lambda m: nn.init.zeros_(m[0].theta),
        lambda m: nn.utils.vector_to_parameters(torch.zeros(12).double(), [m[0].theta]),
        lambda m: m.load_state_dict({**m.state_dict(), "0.theta": torch.zeros(12).double()}),
        lambda m: m.load_state_dict({"0.theta": nn.Parameter(torch.zeros(12).double())}, strict=False, assign=True),
        lambda m: torch._foreach_zero_([m[0].theta.detach()]),
        lambda m: m.state_dict()["0.theta"].clamp_(max=0),
        lambda m: torch.inference_mode()(lambda: m[0].theta.zero_())(),
    ],
    ids=["init", "vector", "load", "assign", "foreach", "state", "inference"],
)
def test_a_theta_set_by_any_means_is_in_what_is_read(setting):
    model = small()
    assert model[0].weight.abs().sum() > 0
    setting(model)
    assert model[0].weight.abs().sum() == 0 and model[0].bias.abs().sum() == 0
