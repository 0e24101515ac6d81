"""A budget: counts exactly, ends at the asked size, holds it, goes on from a checkpoint bit by bit."""

import copy
import gc as garbage
import warnings

import pytest
import torch
from networks import conv_net, kill, mlp
from random_networks import random_network, strike
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import shrinknets_fast as sn
from shrinknets_fast.ranking import Seen, first_fitting
from shrinknets_fast.wrapped import unwrapped

TARGETS = ("parameters", "flops", "features")


def parameters_of(model):
    return sum(p.numel() for p in model.parameters())


def flops_of(model, x):
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model.eval()(x)
    return counter.get_total_flops()


def size_of(model, x, target):
    """Of what a collector leaves, the slow way."""
    model = copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sn.GarbageCollector(model, x).collect()
    if target == "features":
        alive = {id(m.theta): int(m.alive.sum()) for m in sn.filters.named_filters(model).values()}
        return sum(alive.values())
    folded = sn.fold_filters(model)
    return parameters_of(folded) if target == "parameters" else flops_of(folded, x)


def data(seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(256, 16, generator=generator)
    return x, (x @ torch.randn(16, 4, generator=generator)).argmax(1)


class Run:
    """A training run with a budget; order: who is called first after the optimizer."""

    def __init__(self, target, steps=300, optimizer=torch.optim.Adam, order="budget first", filter_lr=2e-2, **options):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(16, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 4))
        self.x, self.y = data()
        sn.add_filters(self.model, self.x[:2])
        groups = sn.param_groups(self.model, lr=options.pop("lr", 5e-3), filter_lr=filter_lr)
        self.optimizer = optimizer(groups)
        self.gc = sn.GarbageCollector(self.model, self.x[:2], optimizers=self.optimizer, min_dead=0.2)
        self.budget = sn.Budget(self.model, self.x[:2], **target, steps=steps, **options)
        self.order, self.steps, self.losses = order, steps, []

    def train(self, steps=None, first=0):
        for k in range(first, first + (self.steps if steps is None else steps)):
            batch = slice(32 * (k % 8), 32 * (k % 8) + 32)
            task = F.cross_entropy(self.model(self.x[batch]), self.y[batch])
            self.optimizer.zero_grad()
            (task + self.budget.lam * sn.penalty(self.model)).backward()
            self.optimizer.step()
            for after in (self.budget, self.gc) if self.order == "budget first" else (self.gc, self.budget):
                after.step()
            self.losses.append(task.item())
        return self

    def state(self):
        self.gc.trim()
        parts = {"model": self.model, "optimizer": self.optimizer, "gc": self.gc, "budget": self.budget}
        return copy.deepcopy({name: part.state_dict() for name, part in parts.items()})


@pytest.mark.parametrize("target", TARGETS)
def test_counts_are_those_of_what_a_collection_leaves(target):
    def check(model, x):
        budget = sn.Budget(model, x, **{target: size_of(model, x, target)})
        assert budget.reached and budget.lam == 0
        kill(model)
        assert budget.size() == size_of(model, x, target)

    check(conv_net(), torch.randn(6, 1, 14, 14, dtype=torch.float64))
    check(mlp(), torch.randn(3, 16, dtype=torch.float64))
    bare = nn.Sequential(sn.FilteredBatchNorm1d(8, affine=False), nn.Linear(8, 2)).double()
    shared = mlp(depth=1)
    twice = nn.Sequential(shared[0], sn.Filter(32, theta=shared[0].theta), shared[1]).double()
    check(bare, torch.randn(3, 8, dtype=torch.float64))
    check(twice, torch.randn(3, 16, dtype=torch.float64))


@pytest.mark.parametrize("seeds", [range(2), pytest.param(range(2, 5), marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize("target", TARGETS)
def test_counts_on_random_networks(target, seeds):
    for seed in seeds:
        model, x = random_network(seed)
        if not sn.features(model):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            full = sn.Budget(model, x, features=sum(t.numel() for t in sn.filters.thetas(model).values()))
            budget = sn.Budget(model, x, **{target: full_size(model, x, target)})
            for part in range(2):
                strike(model, 2 * seed + part)
                assert budget.size() == collected_size(model, x, target), (seed, part)
            assert full.reached


def full_size(model, x, target):
    if target == "features":
        return sum(t.numel() for t in sn.filters.thetas(model).values())
    plain = parameters_of(model) - sum(t.numel() for t in sn.filters.thetas(model).values())
    return plain if target == "parameters" else flops_of(sn.fold_filters(copy.deepcopy(model), x), x)


def collected_size(model, x, target):
    """Without folding's constants: a dead feature behind a sigmoid stays in training."""
    model = copy.deepcopy(model)
    sn.GarbageCollector(model, x).collect()
    live = sum(int((t > 0).sum()) for t in sn.filters.thetas(model).values())
    if target == "features":
        return live
    if target == "parameters":
        return parameters_of(model) - sum(t.numel() for t in sn.filters.thetas(model).values())
    with torch.no_grad():
        for theta in sn.filters.thetas(model).values():
            theta.fill_(1)  # so that folding leaves the sizes alone
    return flops_of(sn.fold_filters(model), x)


@pytest.mark.parametrize("target", TARGETS)
def test_counts_with_a_closed_branch(target):
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.branch = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8))

        def forward(self, x):
            return x + self.branch(x)

    model, x = nn.Sequential(Residual(), Residual(), nn.Linear(8, 2)).double(), torch.randn(3, 8, dtype=torch.float64)
    sn.add_filters(model, x, depth=True)
    budget = sn.Budget(model, x, **{target: full_size(model, x, target)})
    with torch.no_grad():
        gate = next(m for m in model[0].modules() if isinstance(m, sn.Filter) and m.theta.numel() == 1)
        gate.theta.zero_()
    before = budget.size()
    assert before == size_of(model, x, target)
    gc = sn.GarbageCollector(model, x)
    assert gc.collect().branches and budget.size() == before


@pytest.mark.parametrize(
    ("target", "options"),
    [
        ({"parameters": 600}, {}),
        ({"parameters": 600}, {"order": "gc first"}),
        pytest.param({"features": 20}, {"every": 3}, marks=pytest.mark.slow),
        ({"flops": 1500}, {"warmup": 50}),
        pytest.param({"parameters": 700}, {"optimizer": torch.optim.RMSprop}, marks=pytest.mark.slow),
        ({"features": 30}, {"optimizer": lambda p: torch.optim.SGD(p, momentum=0.9), "lr": 0.1, "filter_lr": 0.1}),
    ],
)
def test_a_run_ends_at_the_target_and_stays_there(target, options):
    run = Run(target, **options).train()
    ((kind, asked),) = target.items()
    found = size_of(run.model, run.x[:2], kind)
    biggest = {"parameters": 16 + 1 + 40, "flops": 2 * 2 * 60, "features": 1}[kind]  # of one feature
    assert asked - biggest < found <= asked
    assert run.budget.reached and run.budget.lam == 0 and run.budget.size() == found
    assert sum(run.losses[-8:]) < 0.7 * sum(run.losses[:8])


def test_lambda_sinks_to_0_once_the_target_is_reached_and_nothing_dies():
    run, lams = Run({"features": 40}, steps=120, filter_lr=5e-2, due=0.4, lam=0.1), []
    for k in range(130):
        run.train(1, first=k)
        lams.append((run.budget.lam, run.budget.reached))
    first = [reached for _, reached in lams].index(True)
    assert first < 60 and lams[first][0] == pytest.approx(
        lams[first - 1][0], rel=0.02
    )  # seen one step after it was reached
    left = [max(119 - k, 0) / (119 - first) for k in range(first, 130)]
    assert [lam for lam, _ in lams[first:]] == pytest.approx([lams[first][0] * share for share in left])
    assert run.budget.size() == size_of(run.model, run.x[:2], "features") == 40


def test_nothing_dies_in_the_warm_up_and_lambda_rises():
    run = Run({"parameters": 600}, warmup=50, lam=0.5, filter_lr=5e-2)
    seen = []
    for k in range(5):
        run.train(10, first=10 * k)
        seen.append(run.budget.lam)
        assert sum(alive for alive, _ in sn.features(run.model).values()) == 80
    assert seen == pytest.approx([0.1 * k for k in range(1, 6)])


def test_a_huge_lambda_kills_no_more_than_was_asked():
    """Adam moves all thetas alike: they would die together."""
    run = Run({"features": 31}, lam=100.0, filter_lr=5e-2, every=7).train(100)
    assert size_of(run.model, run.x[:2], "features") == 31


def test_a_protected_feature_may_be_killed_by_hand():
    run = Run({"features": 79})
    with torch.no_grad():
        run.model[0].theta[5] = 0
        run.model[2].theta[:7] = -1
    run.train(3)
    assert size_of(run.model, run.x[:2], "features") == 72


# before the target is due, and while lambda sinks
@pytest.mark.parametrize(
    "at", [pytest.param(60, marks=pytest.mark.slow), 85, pytest.param(150, marks=pytest.mark.slow), 180]
)
def test_a_run_goes_on_bit_by_bit(at):
    target = {"parameters": 600}
    whole = Run(target, steps=200)
    whole.train(at)
    state = whole.state()
    whole.train(200 - at, first=at)
    run = Run(target, steps=200)
    del run.budget, run.gc
    sn.load_state_dict(run.model, state["model"])
    run.optimizer = torch.optim.Adam(sn.param_groups(run.model, lr=5e-3, filter_lr=2e-2))
    run.gc = sn.GarbageCollector(run.model, run.x[:2], optimizers=run.optimizer, min_dead=0.2)
    run.optimizer.load_state_dict(state["optimizer"])
    run.gc.load_state_dict(state["gc"])
    run.budget = sn.Budget(run.model, run.x[:2], **target, steps=200)
    run.budget.load_state_dict(state["budget"])
    run.train(200 - at, first=at)
    assert run.losses == whole.losses[at:]
    assert str(run.budget.state_dict()) == str(whole.budget.state_dict())


def test_a_target_above_a_loaded_model_is_refused_unless_its_state_follows():
    model, x = mlp(), torch.randn(2, 16, dtype=torch.float64)
    sn.load_state_dict(model, model.state_dict())
    budget = sn.Budget(model, x, features=100)
    with pytest.raises(
        sn.ShrinkError, match="features is 100, but Sequential has only 64, and no state of a Budget was"
    ):
        budget.step()


def test_it_works_without_a_collector_and_with_the_proximal_step():
    model, (x, y) = mlp(dtype=torch.float32), data()
    optimizer = torch.optim.Adam(sn.param_groups(model, lr=5e-3, filter_lr=2e-2))
    proximal = sn.ProximalL1(optimizer, model, 0.0)
    budget = sn.Budget(model, x[:2], features=20, steps=300)
    for k in range(300):
        proximal.lam = budget.lam
        optimizer.zero_grad()
        F.cross_entropy(model(x[32 * (k % 8) :][:32]), y[32 * (k % 8) :][:32]).backward()
        optimizer.step()
        budget.step()
    assert sum(alive for alive, _ in sn.features(model).values()) == 20


def test_sizes_of_the_collector_count():
    model, x = mlp(width=16, dtype=torch.float64), torch.randn(2, 16, dtype=torch.float64)
    gc = sn.GarbageCollector(model, x, uniform="*")
    budget = sn.Budget(model, x, parameters=300)
    with torch.no_grad():
        model[0].theta[:10] = 0
        model[1].theta[:4] = 0
    assert budget.size() == 12 * 17 + 12 * 13 + 4 * 13
    gc.collect()
    assert budget.size() == 12 * 17 + 12 * 13 + 4 * 13


def test_a_budget_that_cannot_be_met_in_time_says_so_once():
    run = Run({"features": 5}, steps=60, filter_lr=1e-6)
    with pytest.warns(UserWarning, match="features is 5, due at step 42, but 80 are left at step 60") as caught:
        run.train(90)
    assert len([w for w in caught if "Budget" in str(w.message)]) == 1


def test_a_budget_that_is_gone_is_gone_from_the_optimizers():
    run = Run({"features": 79})
    optimizer, theta = run.optimizer, run.model[0].theta
    del run.budget
    garbage.collect()
    theta.grad = torch.ones_like(theta)
    for _ in range(80):
        optimizer.step()
    assert not bool((theta > 0).any())


def test_wrapped_models_are_taken():
    x = torch.randn(2, 16, dtype=torch.float64)
    model = torch.compile(mlp())
    assert sn.Budget(model, x, features=10).model is unwrapped(model)


BAD = [
    ({}, "targets are none, expected exactly one of parameters, flops, features"),
    ({"parameters": 5, "features": 3}, "targets are parameters=5 and features=3, expected exactly one"),
    ({"parameters": "many"}, "parameters is 'many', expected a finite number"),
    ({"flops": float("nan")}, "flops is nan, expected a finite number"),
    ({"features": 0}, "features is 0, expected a finite number of at least 1"),
    ({"features": True}, "features is True"),
    ({"features": 65}, "features is 65, but Sequential has only 64"),
    ({"parameters": 1e9}, "parameters is 1e[+]09, but Sequential has only 1,732"),
    ({"parameters": 3}, "parameters is 3, but 27 stay even if all filters die"),
    ({"features": 9, "steps": 0}, "steps is 0"),
    ({"features": 9, "due": 1.5}, "due is 1.5 of 1000 steps"),
    ({"features": 9, "warmup": 900}, "due is 0.7 of 1000 steps, expected at most 1, and after the warmup of 900"),
    ({"features": 9, "warmup": -1}, "warmup is -1"),
    ({"features": 9, "every": 0}, "every is 0"),
    ({"features": 9, "lam": 0}, "lam is 0"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_values_are_refused(options, message):
    with pytest.raises(sn.ShrinkError, match=message) as raised:
        sn.Budget(mlp(), torch.randn(2, 16, dtype=torch.float64), **options)
    assert "\n" not in str(raised.value)


def test_a_model_without_filters_is_refused():
    with pytest.raises(sn.ShrinkError, match="Budget: Linear has no filters"):
        sn.Budget(nn.Linear(4, 2), torch.randn(2, 4), features=1)


def test_first_fitting_finds_the_first_from_any_guess():
    for most in range(9):
        for answer in range(most + 1):
            for guess in range(-2, 12):
                assert first_fitting(lambda n, a=answer: n >= a, guess, most) == answer
    asked = []
    assert first_fitting(lambda n: asked.append(n) or n >= 500, 500, 1000) == 500 and len(asked) == 2


def test_the_smallest_thetas_go_first_and_a_layers_last_feature_last():
    seen = Seen({1: torch.tensor([0.3, 0.0, 0.1]).double(), 2: torch.tensor([0.02]).double()})
    assert seen.alive == 3
    first = seen.dead(2)
    assert first[1].tolist() == [False, True, True] and first[2].tolist() == [True]
    assert seen.value(2) == pytest.approx(0.1) and seen.value(1) == pytest.approx(0.02)
