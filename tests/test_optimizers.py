"""Dead stays dead, under every optimizer's memory."""

import copy
import gc
import weakref

import pytest
import torch
from networks import mlp

import shrinknets_fast as sn
from shrinknets_fast.companions.guard import bury
from shrinknets_fast.companions.optimizers import Followed

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.01),
    "adam_amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.003, momentum=0.9, centered=True, weight_decay=0.01),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05, weight_decay=0.01),
}


def train(model, optimizer, steps, lam=0.01, after=lambda: None, seed=0, schedule=None):
    """A regression on fixed random data; returns the losses."""
    generator = torch.Generator().manual_seed(seed)
    dtype = next(model.parameters()).dtype
    x = torch.randn(64, 16, generator=generator, dtype=dtype)
    y = torch.randn(64, 4, generator=generator, dtype=dtype)
    losses = []
    for _ in range(steps):
        pick = torch.randint(0, 64, (16,), generator=generator)
        loss = (model(x[pick]) - y[pick]).square().mean() + lam * sn.penalty(model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
        losses.append(float(loss.detach()))
        after()
    return losses


def warm_up(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 200))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_feature_revives_in_2000_steps(name):
    torch.manual_seed(0)
    model = mlp(width=24, depth=1, dtype=torch.float32)
    optimizer = OPTIMIZERS[name](model.parameters())
    gc = sn.GarbageCollector(model, torch.randn(4, 16), optimizers=optimizer)  # its hooks are what counts
    died = torch.zeros(24, dtype=torch.bool)
    revived = []

    def look():
        alive = model[0].alive
        revived.append(bool((alive & died).any()))
        died.logical_or_(~alive)

    train(model, optimizer, 2000, lam=0.02, after=look, schedule=warm_up(optimizer))
    assert not any(revived) and not gc.state_dict()["steps"]
    assert 0 < int(died.sum())
    assert (model[0].theta[died] == 0).all()


def test_momentum_revives_features_where_nothing_is_registered():
    """The hook's reason: without it the same run brings dead features back."""
    torch.manual_seed(0)
    model = mlp(width=24, depth=1, dtype=torch.float32)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, betas=(0.9, 0.99), weight_decay=0.1)
    died, revived = torch.zeros(24, dtype=torch.bool), []

    def look():
        revived.append(bool((model[0].alive & died).any()))
        died.logical_or_(~model[0].alive)

    train(model, optimizer, 1000, lam=0.02, after=look, schedule=warm_up(optimizer))
    assert any(revived)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_bury_zeroes_theta_and_its_state_only_where_dead(name):
    model = mlp(depth=1)
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer, 3)
    theta = model[0].theta
    with torch.no_grad():
        theta.abs_().add_(0.1)
        theta[:5] = -0.3
    live = theta.detach()[5:].clone()
    followed, weight = Followed(optimizer), dict(model.named_parameters())["0.weight"]
    state = [v.clone() for v in followed.alike(theta)]
    weights = [v.clone() for v in followed.alike(weight)]
    assert state and all((v[5:] != 0).any() for v in state)
    bury(followed, [theta])
    assert (theta[:5] == 0).all() and torch.equal(theta[5:], live)
    for v, before in zip(followed.alike(theta), state, strict=True):
        assert (v[:5] == 0).all() and torch.equal(v[5:], before[5:])
    assert all(torch.equal(*pair) for pair in zip(followed.alike(weight), weights, strict=True))


def test_what_is_set_to_zero_by_hand_stays_dead():
    model = sn.FilteredLinear(6, 8, init=1.0)
    x, optimizer = torch.randn(5, 6), torch.optim.Adam(model.parameters(), lr=0.1)
    gc = sn.GarbageCollector(model, x, optimizers=optimizer)  # noqa: F841
    for step in range(4):
        if step == 3:
            with torch.no_grad():
                model.theta[:3] = 0
        optimizer.zero_grad()
        (model(x).square().sum() - 100 * model.theta.relu().sum()).backward()
        optimizer.step()
    assert model.theta[:3].tolist() == [0, 0, 0] and bool((model.theta[3:] > 0).all())


@pytest.mark.parametrize("fused", [False, True])
def test_state_of_another_size_is_refused_where_it_is_loaded(fused):
    model, x = torch.nn.Sequential(sn.FilteredLinear(6, 8), torch.nn.Linear(8, 3)), torch.randn(5, 6)
    optimizer = torch.optim.Adam(model.parameters(), fused=fused)
    gc = sn.GarbageCollector(model, x, optimizers=optimizer)
    model(x).sum().backward()
    optimizer.step()
    old = copy.deepcopy(optimizer.state_dict())
    with torch.no_grad():
        model[0].theta[:3] = 0
    gc.collect()
    optimizer.load_state_dict(optimizer.state_dict())
    with pytest.raises(sn.ShrinkError, match=r"exp_avg.*\(8, 6\), expected the parameter's \(5, 6\)"):
        optimizer.load_state_dict(old)


def test_an_optimizer_does_not_keep_a_collector():
    model = sn.FilteredLinear(6, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    dropped = weakref.ref(sn.GarbageCollector(model, torch.randn(5, 6), optimizers=optimizer))
    gc.collect()
    assert dropped() is None
    model(torch.randn(5, 6)).sum().backward()
    optimizer.step()


def test_a_nan_theta_is_not_buried():
    model = mlp(depth=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with torch.no_grad():
        model[0].theta[0] = float("nan")
    bury(Followed(optimizer), [model[0].theta])
    assert model[0].theta[0].isnan()


@pytest.mark.parametrize("kind", [torch.optim.LBFGS, torch.optim.SparseAdam])
def test_optimizers_that_cannot_be_followed_are_refused(kind):
    model = mlp()
    with pytest.raises(sn.ShrinkError, match=kind.__name__):
        sn.GarbageCollector(model, torch.randn(2, 16, dtype=torch.float64), optimizers=[kind(list(model.parameters()))])


def test_something_else_than_an_optimizer_is_named():
    with pytest.raises(sn.ShrinkError, match="optimizers holds a Linear"):
        sn.GarbageCollector(mlp(), torch.randn(2, 16, dtype=torch.float64), optimizers=[torch.nn.Linear(2, 2)])


class SlowWeights(torch.optim.Optimizer):
    """A wrapper that never calls ``Optimizer.__init__``: every second step it pulls the weights back to slow ones."""

    def __init__(self, inner):
        self.inner, self.param_groups, self.defaults = inner, inner.param_groups, inner.defaults
        self.state, self.steps = {}, 0

    def zero_grad(self, set_to_none=True):
        self.inner.zero_grad(set_to_none)

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            self.state.setdefault(p, {}).setdefault("slow", p.detach().clone())
        self.inner.step(closure)
        self.steps += 1
        for p in self.param_groups[0]["params"] if self.steps % 2 == 0 else ():
            self.state[p]["slow"].lerp_(p, 0.5)
            p.copy_(self.state[p]["slow"])


def wrapped_run(collect, schedule=False):
    torch.manual_seed(0)
    model = mlp(width=24, depth=1)
    optimizer = SlowWeights(torch.optim.Adam(model.parameters(), lr=0.05))
    gc = sn.GarbageCollector(model, torch.randn(2, 16, dtype=torch.float64), optimizers=optimizer)
    after = torch.optim.lr_scheduler.StepLR(optimizer, 3) if schedule else None

    def kill(step=[0]):  # noqa: B006
        step[0] += 1
        if step[0] == 3:
            with torch.no_grad():
                model[0].theta[:6] = 0
        assert step[0] < 3 or collect or bool((model[0].theta[:6] == 0).all())
        if collect and step[0] == 4:
            assert gc.collect().removed["0"] >= 6

    return train(model, optimizer, 9, after=kill, schedule=after)


@pytest.mark.parametrize("schedule", [False, True])
def test_a_wrapper_s_own_state_follows_and_revives_nothing(schedule):
    torch.testing.assert_close(wrapped_run(True, schedule), wrapped_run(False, schedule), rtol=1e-12, atol=0)


def test_a_wrapper_that_is_no_optimizer_is_told_what_to_give():
    class Holds:
        def __init__(self, inner):
            self.inner = inner

    model = mlp()
    with pytest.raises(sn.ShrinkError, match="holds a Holds, expected .*give it the one in .inner"):
        x = torch.randn(2, 16, dtype=torch.float64)
        sn.GarbageCollector(model, x, optimizers=[Holds(torch.optim.SGD(model.parameters(), lr=0.1))])


@pytest.mark.parametrize("fused", [False, True])
def test_an_optimizer_that_no_collector_has_is_refused_once_its_state_is_stale(fused):
    model, x = mlp(dtype=torch.float32), torch.randn(2, 16)
    optimizer = torch.optim.Adam(model.parameters(), fused=fused)
    gc = sn.GarbageCollector(model, x)

    def step():
        optimizer.zero_grad()
        model(x).sum().backward()
        optimizer.step()

    step()
    with torch.no_grad():
        model[0].theta[:4] = 0
    gc.collect()
    for _ in range(2):
        with pytest.raises(sn.ShrinkError, match=r"Adam: state 'exp_avg' has shape .* give it to the GarbageCollector"):
            step()
    optimizer.state.clear()
    step()
    step()


def test_thetas_in_no_optimizer_are_said():
    model, x = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)), torch.randn(2, 6)
    early = torch.optim.SGD(model.parameters(), lr=0.1)
    sn.add_filters(model, x)
    with pytest.warns(
        UserWarning, match=r"0\.theta is in none of the optimizers.*make the optimizer after add_filters"
    ):
        sn.GarbageCollector(model, x, optimizers=early)
    by_module = [p for m in model.modules() for p in (getattr(m, "weight", None), getattr(m, "theta", None))]
    found = [p for p in by_module if isinstance(p, torch.nn.Parameter)]
    with pytest.warns(UserWarning, match=r"0\.weight is in none of the optimizers.*FilteredLinear.weight is computed"):
        sn.GarbageCollector(model, x, optimizers=torch.optim.SGD(found, lr=0.1))
    with pytest.warns(UserWarning, match="Linear has no filters, so nothing can die"):
        sn.GarbageCollector(torch.nn.Linear(6, 2), x)


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.branch = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 8))

    def forward(self, x):
        return x + self.branch(x)


def layerwise(model):
    gates = [m.branch.gate.theta for m in model if isinstance(m, Block)]
    held = {id(p) for p in gates}
    groups = [[p for p in layer.parameters() if id(p) not in held] for layer in model]
    groups = [{"params": params, "lr": 1e-3 * (i + 1)} for i, params in enumerate(groups) if params]
    return [*groups, {"params": gates, "lr": 1e-2}]


def deep():
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(5, 8), Block(), Block(), torch.nn.Linear(8, 3))
    return sn.add_filters(model, torch.zeros(2, 5), depth=True)


def test_a_group_that_a_branch_has_emptied_is_left_out_of_checkpoints():
    model, x = deep(), torch.randn(4, 5)
    optimizer = torch.optim.Adam(layerwise(model))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    gc = sn.GarbageCollector(model, x, optimizers=optimizer)

    def step(model, optimizer):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    step(model, optimizer)
    with torch.no_grad():
        model[1].branch.gate.theta.zero_()
    assert gc.collect().branches == ("1.branch",)
    step(model, optimizer), schedule.step()
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 0, 5, 2, 2]
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))

    fresh = deep()
    sn.load_state_dict(fresh, saved[0])
    other = torch.optim.Adam(layerwise(fresh))
    other.load_state_dict(saved[1])
    step(model, optimizer), step(fresh, other)
    for old, new in zip(model.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(old, new)
    optimizer.load_state_dict(saved[1])  # the one that still has its empty group
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 2e-3, 3e-3, 4e-3, 1e-2]
    step(model, optimizer), schedule.step()


def test_a_refused_removal_leaves_groups_and_checkpoints():
    model, x = deep(), torch.randn(4, 5)
    optimizer = torch.optim.Adam(layerwise(model))
    gc = sn.GarbageCollector(model, x, optimizers=optimizer)
    inner = model[2].branch[0][0].theta
    optimizer.state[inner]["odd"] = torch.zeros(3)
    with torch.no_grad():
        model[1].branch.gate.theta.zero_()
        inner[:3] = 0
    with pytest.raises(sn.ShrinkError, match="odd"):
        gc.collect()
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 5, 5, 2, 2]
    assert len(optimizer.state_dict()["param_groups"]) == 5
