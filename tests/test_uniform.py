"""Sizes that a user asks for: min_alive, uniform; and which features are left, kept."""

import warnings

import pytest
import torch
from networks import kill, mlp, outputs, relative
from random_networks import random_network, strike
from torch import nn

import shrinknets_fast as sn
from shrinknets_fast.graph import order


def rows_of(width=16, depth=3):
    torch.manual_seed(0)
    model = mlp(width=width, depth=depth)
    return model, torch.randn(5, 16, dtype=torch.float64)


def strike_rows(model, *counts):
    with torch.no_grad():
        for layer, count in zip(model, counts, strict=False):
            layer.theta[:count] = 0


def widths(model):
    return [layer.out_features for layer in model][:-1]


def test_a_hub_stays_at_min_alive():
    model, x = rows_of()
    strike_rows(model, 16, 10, 2)
    gc = sn.GarbageCollector(model, x, min_alive=4)
    before = outputs(model, x)
    with pytest.warns(UserWarning, match="0: all its features are dead; 4 stay as padding"):
        assert gc.collect().removed == {"0": 12, "1": 10, "2": 2}
    assert widths(model) == [4, 6, 14]
    assert relative(outputs(model, x)[0], before[0]) < 1e-13
    strike_rows(model, 0, 4)
    with pytest.warns(UserWarning, match="4 stay"):
        gc.collect()
    assert widths(model) == [4, 4, 14] and sn.features(model)["1"] == (2, 4)


def test_uniform_filters_keep_one_size():
    model, x = rows_of()
    strike_rows(model, 12, 3, 8)
    gc = sn.GarbageCollector(model, x, uniform=["[01]"])
    before = outputs(model, x)
    assert gc.plan().removed == {"0": 3, "1": 3, "2": 8}
    gc.collect()
    assert widths(model) == [13, 13, 8] and sn.features(model)["0"] == (4, 13)
    assert relative(outputs(model, x)[1], before[1]) < 1e-13
    strike_rows(model, 0, 8)
    gc.collect()
    assert widths(model) == [5, 5, 8]


def test_one_pattern_may_be_a_string_and_patterns_that_overlap_make_one_group():
    for uniform in ("*", ("[01]", "[12]")):
        model, x = rows_of()
        strike_rows(model, 12, 3, 8)
        sn.GarbageCollector(model, x, uniform=uniform).collect()
        assert widths(model) == [13, 13, 13]


def test_with_align_and_a_random_share():
    model, x = rows_of()
    strike_rows(model, 12, 3, 8)
    gc = sn.GarbageCollector(model, x, uniform="*", align=4, min_alive=6)
    gc.collect()
    assert widths(model) == [16, 16, 16]
    model, x = rows_of()
    strike_rows(model, 14, 14, 8)
    sn.GarbageCollector(model, x, uniform="[01]", align=4, min_alive=5).collect()
    assert widths(model) == [8, 8, 8]
    model, x = rows_of()
    strike_rows(model, 12, 10, 8)
    gc = sn.GarbageCollector(model, x, uniform="*", removal=0.5, seed=1)
    for _ in range(20):
        gc.collect()
        assert len(set(widths(model))) == 1
    assert widths(model) == [8, 8, 8]


def test_folding_keeps_sizes_where_it_is_asked_to():
    model, x = rows_of()
    strike_rows(model, 12, 3, 8)
    sn.GarbageCollector(model, x, uniform="*").collect()
    assert [m.out_features for m in sn.fold_filters(model).modules() if isinstance(m, nn.Linear)] == [4, 13, 8, 4]
    small = sn.fold_filters(model, uniform="*", min_alive=9)
    assert [m.out_features for m in small.modules() if isinstance(m, nn.Linear)] == [13, 13, 13, 4]
    small = sn.fold_filters(model, min_alive=9)
    assert [m.out_features for m in small.modules() if isinstance(m, nn.Linear)] == [9, 13, 9, 4]
    assert relative(small(x), model(x)) < 1e-13


def test_uniform_lasts_when_a_branch_leaves():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.branch = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))

        def forward(self, x):
            return x + self.branch(x)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), Residual(), Residual(), Residual(), nn.Linear(8, 2)).double()
    x = torch.randn(3, 8, dtype=torch.float64)
    sn.add_filters(model, x, depth=True)
    inner = [name for name in sn.features(model) if name.endswith(".0.0")]
    gc = sn.GarbageCollector(model, x, uniform=["*.branch.0.0"], min_alive=2)
    found = dict(model.named_modules())
    gates = [name for name, (_, total) in sn.features(model).items() if total == 1]
    assert len(inner) == len(gates) == 3
    with torch.no_grad():
        found[gates[0]].theta.zero_()
        found[inner[1]].theta[:5] = 0
        found[inner[2]].theta[:3] = 0
    before = outputs(model, x)
    assert len(gc.collect().branches) == 1
    assert [total for name, (_, total) in sn.features(model).items() if name in inner] == [5, 5]
    assert relative(outputs(model, x)[0], before[0]) < 1e-13
    assert gc.kept(inner[1]).tolist() and len(gc.kept(inner[1])) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"uniform": "nothing*"}, r"uniform: 'nothing\*' matches no filter, expected some of 0, 1, 2"),
        ({"uniform": [3]}, "uniform: 3 is no pattern"),
        ({"min_alive": 17}, "min_alive is 17, but 0 has 16 features"),
        ({"min_alive": 0}, "min_alive is 0, expected an integer of at least 1"),
        ({"min_alive": 1.5}, "min_alive is 1.5"),
    ],
)
def test_bad_values_are_refused(options, message):
    model, x = rows_of()
    with pytest.raises(sn.ShrinkError, match=message):
        sn.GarbageCollector(model, x, **options)


def test_filters_of_different_sizes_are_refused():
    model = nn.Sequential(sn.FilteredLinear(16, 8), sn.FilteredLinear(8, 6), nn.Linear(6, 2))
    with pytest.raises(sn.ShrinkError, match=r"uniform: '\*' matches filters of different sizes: 0 has 8, 1 has 6"):
        sn.GarbageCollector(model, torch.randn(2, 16), uniform="*")


def test_kept_names_the_first_positions_through_collections_and_checkpoints():
    model, x = rows_of()
    gc = sn.GarbageCollector(model, x)
    first = model[1].theta.detach().clone()
    assert gc.kept("1").tolist() == list(range(16))
    strike_rows(model, 0, 3)
    gc.collect()
    with torch.no_grad():
        model[1].theta[2] = 0
    gc.collect()
    assert gc.kept("1").tolist() == [3, 4, *range(6, 16)]
    assert torch.equal(first[gc.kept("1")], model[1].theta)
    gc.kept("1").zero_()  # a copy
    state, weights = gc.state_dict(), model.state_dict()
    model, x = rows_of()
    sn.load_state_dict(model, weights)
    gc = sn.GarbageCollector(model, x)
    gc.load_state_dict(state)
    strike_rows(model, 0, 1)
    gc.collect()
    assert gc.kept("1").tolist() == [4, *range(6, 16)]
    with pytest.raises(sn.ShrinkError, match="kept: 'x' is no filter or hub, expected one of 0, "):
        gc.kept("x")


def test_a_state_of_another_size_is_refused_with_nothing_changed():
    model, x = rows_of()
    strike_rows(model, 5)
    gc = sn.GarbageCollector(model, x)
    gc.collect()
    state = gc.state_dict()
    other, _ = rows_of()
    fresh = sn.GarbageCollector(other, x)
    before = str(fresh.state_dict())
    with pytest.raises(sn.ShrinkError, match="0 has 16 features, the state was saved with 11"):
        fresh.load_state_dict(state)
    assert str(fresh.state_dict()) == before


def test_kept_follows_a_fill(monkeypatch):
    monkeypatch.setattr(order, "WORTH_SHARE", 0)
    monkeypatch.setattr(order, "WORTH_BYTES", 0)
    model, x = rows_of(width=100, depth=1)
    first = model[0].theta.detach().clone()
    gc = sn.GarbageCollector(model, x)
    kill(model, share=0.1)
    (plan,) = [hub for hub in gc.plan().hubs if hub.name == "0"]
    assert bool((plan.kept[1:] < plan.kept[:-1]).any()), "the order is expected to change"
    gc.collect()
    assert torch.equal(first[gc.kept("0")], model[0].theta)


def test_random_networks_stay_the_same():
    removed = 0
    for seed in range(8):
        model, x = random_network(seed)
        every = [total for _, total in sn.features(model).values() if total > 1]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                gc = sn.GarbageCollector(model, x, uniform="*", min_alive=min(every, default=1))
                tied = True
            except sn.ShrinkError:  # filters of different sizes
                gc = sn.GarbageCollector(model, x, min_alive=min(every, default=1) // 2 or 1)
                tied = False
            for part in range(2):
                strike(model, 2 * seed + part)
                before = outputs(model, x)
                removed += sum(gc.collect().removed.values())
                totals = {total for _, total in sn.features(model).values()}
                assert not tied or len(totals) <= 1, seed
                assert min(totals, default=9) >= min(gc.min_alive, 9), seed
                for new, old in zip(outputs(model, x), before, strict=True):
                    assert float((new - old).abs().max()) <= 1e-10 * max(float(old.abs().max()), 1e-3), seed
    assert removed > 25
