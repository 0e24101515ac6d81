"""Grouped layers lose equally many features in each group, at whatever positions."""

import copy
import random

import pytest
import torch
import torch.nn.functional as F
from networks import outputs, relative
from torch import nn

import shrinknets_fast as sn
from shrinknets_fast.companions.guard import Guard
from shrinknets_fast.companions.optimizers import Followed

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=1e-3),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
}


class Block(nn.Module):
    """Of a ResNeXt: narrow, grouped, wide again."""

    def __init__(self, width, inner, groups, wide=None):
        super().__init__()
        wide = wide or inner
        self.conv1, self.norm1 = nn.Conv2d(width, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.norm2 = nn.Conv2d(inner, wide, 3, padding=1, groups=groups), nn.BatchNorm2d(wide)
        self.conv3, self.norm3 = nn.Conv2d(wide, width, 1), nn.BatchNorm2d(width)

    def forward(self, x):
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(x + self.norm3(self.conv3(F.relu(self.norm2(self.conv2(y))))))


def resnext(seed):
    """(model in float64, input): two or three blocks, of other numbers of groups each."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    blocks = []
    for _ in range(draw.randint(1, 2)):
        groups = draw.choice([2, 3, 4])
        inner = groups * draw.choice([2, 3, 5])
        blocks.append(Block(6, inner, groups, draw.choice([inner, groups * 4])))
        if draw.random() < 0.3:  # two of them behind one another, with two partitions of what is between
            blocks.append(
                nn.Sequential(nn.Conv2d(6, 12, 3, groups=2), nn.ReLU(), nn.Conv2d(12, 6, 1, groups=draw.choice([2, 3])))
            )
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), *blocks)
    model = nn.Sequential(*model, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5), nn.init.uniform_(module.bias, -0.5, 0.5)
    if draw.random() < 0.5:
        model = model.to(memory_format=torch.channels_last)
    return model, torch.randn(4, 3, 9, 9, dtype=torch.float64)


@torch.no_grad()
def strike(model, draw, share):
    for theta in sn.filters.thetas(model).values():
        theta[torch.tensor([draw.random() < share for _ in range(theta.numel())])] = -0.1


def train(seed, make, collect):
    """(losses of 20 steps with random deaths every fourth, how many features left, the model, its optimizer)"""
    model, x = resnext(seed)
    sn.add_filters(model, x, residual="tied" if seed % 2 else "inner")
    optimizer = make(model.parameters())
    gc = sn.GarbageCollector(model, x, optimizers=optimizer) if collect else None
    thetas = [] if collect else list(sn.filters.thetas(model).values())
    guard = Guard([Followed(optimizer)], lambda: thetas)  # without a collector too the dead stay dead
    original = {name: torch.arange(theta.numel()) for name, theta in sn.filters.thetas(model).items()}
    target, losses, removed = (
        torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)),
        [],
        0,
    )
    for step in range(20):
        if step % 4 == 1:  # the same features in both runs
            draw = random.Random(100 * seed + step)
            for name, theta in sn.filters.thetas(model).items():
                place = gc.kept(name.removesuffix(".theta")) if gc else original[name]
                dead = torch.tensor([draw.random() < 0.25 for _ in original[name]])
                with torch.no_grad():
                    theta[dead[place]] = 0
        if step % 4 == 3 and gc is not None:
            removed += sum(gc.collect().removed.values())
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), target)
        (loss + 0.001 * sn.penalty(model)).backward()
        optimizer.step()
        losses.append(loss.item())
    del guard
    return torch.tensor(losses), removed, model, optimizer


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 12))])
def test_training_is_the_masked_run(seed, name):
    small, removed, model, optimizer = train(seed, OPTIMIZERS[name], True)
    masked, *_ = train(seed, OPTIMIZERS[name], False)
    assert removed > 0
    assert float((small - masked).abs().max()) < 1e-9
    for p, state in optimizer.state.items():
        assert all(t.shape == p.shape for t in state.values() if isinstance(t, torch.Tensor) and t.dim())
    grouped = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert grouped and all(m._parameters["weight"].shape[1] * m.groups == m.in_channels for m in grouped)


def pair(groups=4, channels=32, layout=torch.contiguous_format):
    torch.manual_seed(0)
    first = nn.Sequential(nn.Conv2d(3, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU())
    second = nn.Sequential(
        nn.Conv2d(channels, channels, 3, groups=groups, bias=False), nn.BatchNorm2d(channels), nn.ReLU()
    )
    model = nn.Sequential(*first, *second, nn.Conv2d(channels, 8, 1)).double().to(memory_format=layout)
    return model, torch.randn(2, 3, 6, 6, dtype=torch.float64)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_fewest_dead_of_all_groups_leave(layout):
    model, x = pair(layout=layout)
    sn.add_filters(model, x)
    with torch.no_grad():
        model[1].theta[[0, 1, 2, 9, 12, 17, 23, 30, 31]] = 0  # 3, 2, 2 and 2 of four groups of 8
        model[4].theta[[3, 4, 11, 19, 24]] = 0
    before, weight = outputs(model, x), model[3].weight.detach().clone()
    assert sn.GarbageCollector(model, x).collect().removed == {"1": 8, "4": 4}
    assert model[3].in_channels == 24 and model[3].groups == 4 and model[3].out_channels == 28
    assert model[3].weight.is_contiguous(memory_format=layout)
    left = [[0, 3, 4, 5, 6, 7], [8, 10, 11, 13, 14, 15], [16, 18, 19, 20, 21, 22], [24, 25, 26, 27, 28, 29]]
    rows = [k for k in range(32) if k not in (4, 11, 19, 24)]
    expected = torch.stack([weight[k][[c % 8 for c in left[k // 8]]] for k in rows])
    assert torch.equal(model[3].weight, expected)
    for new, old in zip(outputs(model, x), before, strict=True):
        assert relative(new, old) < 1e-12


def test_a_plan_says_why_the_rest_stays_and_a_budget_counts_it():
    model, x = pair()
    sn.add_filters(model, x)
    with torch.no_grad():
        model[1].theta[:8] = 0
    gc = sn.GarbageCollector(model, x)
    assert not gc.plan() and "conv2d) has equally many features in each group" in str(gc.plan())
    with torch.no_grad():
        model[1].theta[[10, 20, 30]] = 0
    assert gc.plan().removed == {"1": 4}
    share = sn.coverage(model, x).parameters["3.weight"][1]
    assert share == 1


def test_align_counts_each_group():
    model, x = pair()
    sn.add_filters(model, x)
    with torch.no_grad():
        model[1].theta[[0, 1, 2, 8, 9, 15, 16, 20, 21, 29, 30, 31]] = 0
    assert sn.GarbageCollector(model, x, align=4).plan().removed == {}
    with torch.no_grad():
        model[1].theta[[3, 10, 17, 24]] = 0
    assert sn.GarbageCollector(model, x, align=4).collect().removed == {"1": 16}


def test_a_random_share_is_equal_in_all_groups():
    model, x = pair()
    sn.add_filters(model, x)
    with torch.no_grad():
        model[1].theta[[0, 1, 2, 3, 8, 9, 10, 15, 16, 20, 21, 22, 28, 29, 30, 31]] = 0
    before = outputs(model, x)
    gc = sn.GarbageCollector(model, x, removal=0.5, seed=1)
    assert gc.collect().removed == {"1": 8}
    for new, old in zip(outputs(model, x), before, strict=True):
        assert relative(new, old) < 1e-12
    assert gc.collect().removed == {"1": 4}


def test_a_copy_of_the_model_follows():
    model, x = pair()
    sn.add_filters(model, x)
    ema = copy.deepcopy(model)
    dead = [0, 1, 9, 12, 17, 23, 30, 31]
    with torch.no_grad():
        for m in (model, ema):
            m[1].theta[dead] = 0
    before = outputs(ema, x)
    assert sn.GarbageCollector(model, x, follow=ema).collect().removed == {"1": 8}
    for new, old in zip(outputs(ema, x), before, strict=True):
        assert relative(new, old) < 1e-12


class Twice(nn.Module):
    """One grouped convolution reads two tensors: the same features leave both."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.shared = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1, groups=2)
        self.last = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        return self.last(self.shared(F.relu(self.one(x))) + self.shared(F.relu(self.two(x)).square()))


class Cut(nn.Module):
    """A grouped convolution of two layers' features: its groups lie in several hubs."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.grouped = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 6, 1), nn.Conv2d(12, 4, 1, groups=4)

    def forward(self, x):
        return self.grouped(torch.cat([F.relu(self.one(x)), F.relu(self.two(x))], 1)).mean((2, 3))


class Normalised(nn.Module):
    """The weight's columns have a parameter of their own, the same for all groups: they leave by position."""

    def __init__(self):
        super().__init__()
        self.one, self.grouped = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1, groups=2)
        self.scale = nn.Parameter(torch.rand(4, 1, 1) + 0.5)

    def forward(self, x):
        return F.conv2d(F.relu(self.one(x)), self.grouped.weight * self.scale, groups=2).mean((2, 3))


@pytest.mark.parametrize("kind", [Twice, Cut, Normalised])
@pytest.mark.parametrize("seed", range(4))
def test_what_cannot_go_by_count_stays_right(kind, seed):
    torch.manual_seed(seed)
    model, x = kind().double(), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    sn.add_filters(model, x, residual="tied")
    gc = sn.GarbageCollector(model, x)
    for share in (0.5, 0.4):
        strike(model, random.Random(seed), share)
        before = outputs(model, x)
        gc.collect()
        for new, old in zip(outputs(model, x), before, strict=True):
            assert relative(new, old) < 1e-12


def test_a_state_that_cannot_follow_is_refused_in_one_line():
    model, x = pair()
    sn.add_filters(model, x)

    class PerColumn(torch.optim.SGD):
        """One entry for each column of a weight."""

        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None and p.dim() > 1:
                        state = self.state[p]
                        size = [1, p.shape[1], *[1] * (p.dim() - 2)]
                        state.setdefault("largest", p.new_zeros(size))
                        state["largest"] += p.grad.abs().amax([d for d in range(p.dim()) if d != 1], keepdim=True)
            return super().step(closure)

    optimizer = PerColumn(model.parameters(), lr=0.01)
    gc = sn.GarbageCollector(model, x, optimizers=optimizer)
    model(x).sum().backward()
    optimizer.step()
    with torch.no_grad():
        model[1].theta[[0, 9, 18, 27]] = 0
    before = model[3].weight.shape
    with pytest.raises(sn.ShrinkError, match=r"3.weight.* has one entry for columns of several groups"):
        gc.collect()
    assert model[3].weight.shape == before
