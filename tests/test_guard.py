"""Dead stays dead, whoever sets theta and whenever."""

import itertools

import pytest
import torch
from torch import nn

import shrinknets_fast as sn
from shrinknets_fast.companions.guard import Guard
from shrinknets_fast.companions.optimizers import Followed

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, lr=0.05, foreach=False),
    "adam_foreach": lambda p: torch.optim.Adam(p, lr=0.05, foreach=True),
    "adam_fused": lambda p: torch.optim.Adam(p, lr=0.05, fused=True),
    "adam_maximize": lambda p: torch.optim.Adam(p, lr=0.05, maximize=True),
    "adam_amsgrad_decay": lambda p: torch.optim.Adam(p, lr=0.05, amsgrad=True, weight_decay=0.1),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.05),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.05),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=1.0),
    "asgd": lambda p: torch.optim.ASGD(p, lr=0.1),
    "noisy": lambda p: Noisy(p),
}
# Where a theta is set, in a step of: forward, backward, "backward", optimizer, "optimizer"
TIMES = ["before", "backward", "optimizer"]
WAYS = {
    "in place": lambda theta: theta.detach()[:6].zero_(),
    ".data": lambda theta: theta.data.__setitem__(slice(6), -0.5),
    ".data =": lambda theta: setattr(theta, "data", torch.cat([torch.zeros(6), theta.data[6:]])),
    "copy_": lambda theta: theta.detach().copy_(torch.cat([-torch.ones(6), theta.detach()[6:]])),
}


class Noisy(torch.optim.Optimizer):
    """Moves everything, whatever its gradient and state are."""

    def __init__(self, params):
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            p.add_(torch.rand_like(p), alpha=0.01).sub_(p.grad, alpha=0.01)


def net():
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))
    return sn.add_filters(model, torch.zeros(2, 6))


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(("when", "way"), itertools.product(TIMES, WAYS))
def test_what_is_set_dead_stays_dead(name, when, way):
    model, x = net(), torch.randn(8, 6)
    optimizer, theta = OPTIMIZERS[name](model.parameters()), model[0].theta
    gc = sn.GarbageCollector(model, x, optimizers=optimizer)  # noqa: F841  its hooks live as long as it
    for step in range(6):
        place = when if step == 3 else None
        if place == "before":
            WAYS[way](theta)
        loss = -model(x).tanh().sum() - theta.relu().sum()  # wants theta to grow
        loss = -loss if optimizer.param_groups[0].get("maximize") else loss
        optimizer.zero_grad()
        loss.backward()
        if place == "backward":
            WAYS[way](theta)
        optimizer.step()
        if place == "optimizer":
            WAYS[way](theta)
        if step > 3 or (step == 3 and when != "optimizer"):
            assert (theta[:6] == 0).all() and (theta[6:] > 0).any(), step
            assert all((v[:6] == 0).all() for v in Followed(optimizer).alike(theta))


def test_under_accumulation_and_in_a_callback():
    model, x = net(), torch.randn(8, 6)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    gc = sn.GarbageCollector(model, x, optimizers=optimizer)  # noqa: F841
    pruned = []

    def prune(*_):
        model[0].theta.detach()[pruned] = 0

    optimizer.register_step_pre_hook(prune)
    for start in (0, 6):
        for part in range(4):
            (-model(x[2 * part : 2 * part + 2]).square().sum()).backward()
            with torch.no_grad():
                model[0].theta[start + part] = 0
        optimizer.step()
        assert (model[0].theta[start : start + 4] == 0).all()
        pruned = [4, 5]
    assert (model[0].theta[:10] == 0).all() and (model[0].theta[10:] > 0).all()


def test_a_closure_that_computes_gradients_anew():
    model, x = net(), torch.randn(8, 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    gc = sn.GarbageCollector(model, x, optimizers=optimizer)  # noqa: F841

    def closure():
        optimizer.zero_grad()
        loss = -model(x).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        model[0].theta[:4] = 0
    optimizer.step(closure)
    assert (model[0].theta[:4] == 0).all()


class Ahead(torch.optim.SGD):
    """Computes gradients at a point that it keeps, as schedule-free optimizers do."""

    def step(self, closure):
        for p in self.param_groups[0]["params"]:
            p.data.copy_(self.state[p].setdefault("point", p.detach().clone()))
        closure()
        super().step()
        for p in self.param_groups[0]["params"]:
            self.state[p]["point"].copy_(p.detach())


def test_a_step_that_computes_with_a_theta_of_its_state():
    model, x, seen = net(), torch.randn(8, 6), []
    optimizer = Ahead(model.parameters(), lr=0.1)
    gc = sn.GarbageCollector(model, x, optimizers=optimizer)  # noqa: F841  its hooks live as long as it

    def closure():
        optimizer.zero_grad()
        seen.append(model[0].theta.detach().clone())
        model(x).square().sum().backward()

    optimizer.step(closure)
    with torch.no_grad():
        model[0].theta[:6] = 0
    optimizer.step(closure)
    assert not seen[1][:6].any() and seen[1][6:].all()


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_scaler_skips_neither_kills_nor_revives(fused):
    model, x = net(), torch.randn(8, 6)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05, fused=fused)
    gc = sn.GarbageCollector(model, x, optimizers=optimizer)  # noqa: F841
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)

    def step(poison):
        optimizer.zero_grad()
        scaler.scale(-model(x).square().mean()).backward()
        if poison:
            model[2].bias.grad[0] = float("inf")
        with torch.no_grad():
            model[0].theta[:4] = 0
        scaler.step(optimizer)
        scaler.update()

    step(False)
    before = model[0].theta.detach().clone()
    step(True)
    assert torch.equal(model[0].theta.detach(), before)
    step(False)
    assert (model[0].theta[:4] == 0).all() and not torch.equal(model[0].theta.detach(), before)


def test_a_feature_revived_by_hand_lives_again():
    """Dead is what theta says: before a removal it may be taken back."""
    model, x = net(), torch.randn(8, 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    gc = sn.GarbageCollector(model, x, optimizers=optimizer)  # noqa: F841
    for value in (0.0, 1.0):
        with torch.no_grad():
            model[0].theta[:4] = value
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        assert bool((model[0].theta[:4] > 0).all()) == bool(value)


def test_proximal_steps_keep_the_dead_dead_without_a_collector():
    model, x = net(), torch.randn(8, 6)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    proximal = sn.ProximalL1(optimizer, model, 1e-4)  # noqa: F841
    for _ in range(3):
        optimizer.zero_grad()
        (-model(x).square().mean()).backward()
        with torch.no_grad():
            model[0].theta[:4] = 0
        optimizer.step()
        assert (model[0].theta[:4] == 0).all()


def test_after_a_collection_the_guard_knows_the_new_size():
    model, x = net(), torch.randn(8, 6)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    gc = sn.GarbageCollector(model, x, optimizers=optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        (-model(x).square().mean()).backward()
        with torch.no_grad():
            model[0].theta[:2] = 0
        optimizer.step()
        assert gc.step().removed == {"0": 2}
    assert model[0].theta.shape == (6,)


def test_a_theta_of_another_optimizer_is_left_alone():
    model, x = net(), torch.randn(8, 6)
    with torch.no_grad():
        model[0].theta[:4] = -0.25
    weights = torch.optim.SGD([p for n, p in model.named_parameters() if "theta" not in n], lr=0.1)
    guard = Guard([Followed(weights)], lambda: [model[0].theta])  # noqa: F841
    model(x).sum().backward()
    weights.step()
    assert (model[0].theta[:4] == -0.25).all()


@pytest.mark.gpu
@pytest.mark.parametrize("capturable", [False, True])
def test_on_cuda(capturable):
    model, x = net().cuda(), torch.randn(8, 6, device="cuda")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05, capturable=capturable)
    gc = sn.GarbageCollector(model, x, optimizers=optimizer)  # noqa: F841
    for step in range(6):
        optimizer.zero_grad()
        (-model(x).square().mean()).backward()
        if step == 3:
            model[0].theta.detach()[:6].zero_()
        optimizer.step()
    assert (model[0].theta[:6] == 0).all()
