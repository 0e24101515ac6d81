"""Optimizers are tried when a collector gets them: what their state is, and whether a removal is exact."""

import copy
import warnings
from collections import deque

import pytest
import torch
from torch import nn

import shrinknets_fast as sn
from shrinknets_fast.companions.optimizers import Followed
from shrinknets_fast.companions.trial import try_out


class Custom(torch.optim.Optimizer):
    """``rule(p, state)`` gives the step of one parameter."""

    def __init__(self, params, rule=None, lr=0.01, attribute=None):
        super().__init__(params, {"lr": lr})
        self.rule, self.attribute = rule, attribute

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(self.rule(p, self.state[p]), alpha=group["lr"])


def delayed(p, state):
    past = state.setdefault("past", deque(maxlen=3))
    past.append(p.grad.clone())
    return sum(past)


def in_object(p, state):
    kept = state.setdefault("kept", Kept())
    kept.sums = [[kept.sums[0][0] + p.grad if kept.sums else p.grad.clone()]]
    return kept.sums[0][0]


class Kept:
    def __init__(self):
        self.sums = None


def rows_and_columns(p, state):
    """Adafactor's kind of state, without its averages: nothing drifts."""
    if p.dim() < 2:
        return p.grad
    for name, rows in (("row", p.grad), ("column", p.grad.transpose(0, 1))):
        state[name] = state.get(name, 0) + rows.square().flatten(1).sum(1)
    return p.grad / (1 + state["row"].view(-1, *[1] * (p.dim() - 1)))


def flat(p, state):
    state.setdefault("flat", torch.zeros(p.numel())).add_(p.grad.flatten())
    return state["flat"].view_as(p)


def cautious(p, state):
    mask = (p.grad * p > 0).to(p.dtype)
    return p.grad * mask / mask.mean().clamp(min=1e-3)


def trust_ratio(p, state):
    return p.grad * p.norm() / p.grad.norm()


def norm_of_the_past(p, state):
    """Of gradients that zeros have no part in; of what the dead left behind when they were alive, they do."""
    state["sum"] = 0.9 * state.get("sum", 0) + p.grad
    return state["sum"] / state["sum"].norm()


def first_entry(p, state):
    return p.grad - p.grad.flatten()[0]


def square(p, state):
    """A preconditioner of (rows, rows), which can be larger than the parameter."""
    rows = p.grad.flatten(1) if p.dim() > 1 else p.grad[:, None]
    state["square"] = state.get("square", 0) + rows @ rows.t()
    return p.grad


def own_noise(p, state):
    return p.grad + torch.rand_like(p)


def blocks(p, state):
    state.setdefault("blocks", torch.zeros(p.numel() // 2 + 1, 2))
    return p.grad


def network():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.randn(4, 3, 6, 6)
    return sn.add_filters(model, x), x


def followed(optimizer):
    found = Followed(optimizer)
    try_out(found)
    return found


def quietly(call):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return call()


@pytest.mark.parametrize("rule", [delayed, in_object, flat, rows_and_columns, square])
def test_state_of_any_kind_goes_on_as_if_the_dead_were_there(rule):
    model, x = network()
    masked = copy.deepcopy(model)
    optimizers = [Custom(m.parameters(), rule) for m in (model, masked)]
    gc = quietly(lambda: sn.GarbageCollector(model, x, optimizers=optimizers[0]))
    guard = sn.GarbageCollector(masked, x, optimizers=optimizers[1])  # noqa: F841  never collects

    def step():
        outputs = []
        for m, optimizer in zip((model, masked), optimizers, strict=True):
            optimizer.zero_grad()
            outputs.append(m(x))
            outputs[-1].square().mean().backward()
            optimizer.step()
        return outputs

    for k in range(6):
        if k == 3:
            with torch.no_grad():
                for m in (model, masked):
                    m[0].theta[:3] = 0
                    m[3].theta[2:5] = 0
            assert gc.collect().removed == {"0": 3, "3": 3}
        torch.testing.assert_close(*step())


@pytest.mark.parametrize("rule", [cautious, trust_ratio, norm_of_the_past, first_entry, own_noise])
def test_statistics_of_whole_tensors_are_warned_about(rule):
    model, _ = network()
    with pytest.warns(
        UserWarning, match="Custom steps by statistics of whole tensors: after a removal the rest goes on"
    ):
        followed(Custom(model.parameters(), rule))


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1),
        lambda p: torch.optim.SGD(p, lr=0.0, momentum=0.9),  # as at the start of a warm-up
        lambda p: torch.optim.SGD(p, lr=torch.tensor(0.0), momentum=0.9),
        lambda p: torch.optim.Adam(p, amsgrad=True),
        lambda p: torch.optim.AdamW(p, foreach=True),
        lambda p: torch.optim.Adam(p, fused=True),
        lambda p: torch.optim.RMSprop(p, centered=True, momentum=0.9),
        lambda p: torch.optim.Rprop(p),
        lambda p: torch.optim.RAdam(p),
        lambda p: torch.optim.ASGD(p),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_optimizers_that_are_exact_are_followed_without_a_word(make, dtype):
    model, _ = network()
    optimizer = make(model.to(dtype).parameters())
    state = torch.get_rng_state()
    found = quietly(lambda: followed(optimizer))
    assert torch.equal(torch.get_rng_state(), state) and not optimizer.state
    assert all(p.grad is None for p in model.parameters())
    assert all(set(layout.dims) <= set(range(4)) for layouts in found.layouts.values() for layout in layouts)


@pytest.mark.parametrize("make", [torch.optim.Adafactor, lambda p: torch.optim.Muon([q for q in p if q.dim() == 2])])
def test_torch_s_own_that_drift_are_named(make):
    model, _ = network()
    with pytest.warns(UserWarning, match="(Adafactor|Muon) steps by statistics of whole tensors"):
        followed(make(model.parameters()))


def test_state_that_follows_nothing_is_refused_before_a_step():
    model, x = network()
    with pytest.raises(
        sn.ShrinkError, match=r"holds Custom, which cannot be followed: state 'blocks' has shape \(.*use"
    ):
        sn.GarbageCollector(model, x, optimizers=Custom(model.parameters(), blocks))


def test_state_that_is_there_already_is_looked_at():
    model, x = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.state[next(model.parameters())]["odd"] = torch.zeros(5, 7)
    with pytest.raises(sn.ShrinkError, match=r"SGD: state 'odd' has shape \(5, 7\)"):
        sn.GarbageCollector(model, x, optimizers=optimizer)
    optimizer.state.clear()
    optimizer.state["everything"]["sums"] = torch.zeros(5)
    with pytest.raises(sn.ShrinkError, match="'everything' holds tensors and belongs to no parameter"):
        sn.GarbageCollector(model, x, optimizers=optimizer)


def test_what_cannot_be_tried_is_said():
    model, _ = network()

    def fails(p, state):
        raise RuntimeError("needs a GPU\nand more")

    with pytest.warns(UserWarning, match=r"Custom could not be tried \(needs a GPU\): whether its state"):
        followed(Custom(model.parameters(), fails))


def test_a_trial_leaves_the_optimizer_as_it_is():
    model, _ = network()
    calls = []
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    optimizer.register_step_pre_hook(lambda *_: calls.append("hook"))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    before = copy.deepcopy(optimizer.state_dict()), [p.detach().clone() for p in model.parameters()]
    followed(optimizer)
    assert optimizer.state_dict() == before[0] and not calls and schedule.last_epoch == 0
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before[1], strict=True))
    optimizer = Custom(model.parameters(), delayed, attribute=[torch.zeros(3)])
    followed(optimizer)
    assert optimizer.attribute[0].tolist() == [0, 0, 0]


@pytest.mark.parametrize("least", [16, 32, 128])
def test_large_matrices_are_tried_large(least):
    """Some optimizers factor what has at least so many rows and columns."""

    def factored(p, state):
        if p.dim() == 2 and min(p.shape) >= least:
            state.setdefault("rows", torch.zeros(p.shape[0])).add_(p.grad.square().sum(1))
        return p.grad

    model = sn.add_filters(nn.Sequential(nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 3)), torch.zeros(2, 200))
    optimizer = Custom(model.parameters(), factored)
    with pytest.warns(UserWarning, match="Custom keeps other state for small tensors: its step fails once"):
        gc = sn.GarbageCollector(model, torch.zeros(2, 200), optimizers=optimizer)
    model(torch.randn(2, 200)).sum().backward()
    optimizer.step()
    weight = next(model.parameters())
    rows = optimizer.state[weight]["rows"].clone()
    with torch.no_grad():
        model[0].theta[::2] = 0
    assert gc.collect().removed == {"0": 100}
    assert torch.equal(optimizer.state[weight]["rows"], rows[1::2])
