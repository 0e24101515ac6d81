"""What goes along besides the model: EMA copies, and optimizers whose state is not shaped like the parameter."""

import copy

import pytest
import torch
from networks import conv_net, kill, mlp, outputs, relative
from test_optimizers import train

import shrinknets_fast as sn

X = torch.randn(4, 1, 14, 14, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def bury_all(model):
    with torch.no_grad():
        for module in sn.filters.named_filters(model).values():
            module.theta.clamp_(min=0)


def test_an_averaged_model_follows():
    model = conv_net()
    ema = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
    kill(model), kill(ema.module)
    gc = sn.GarbageCollector(model, X, follow=[ema])
    before = outputs(ema.module, X)
    identities = [id(p) for p in ema.parameters()]
    gc.collect()
    assert identities == [id(p) for p in ema.parameters()]
    assert [p.shape for p in ema.module.parameters()] == [p.shape for p in model.parameters()]
    assert ema.module[4].in_features == model[4].in_features
    for old, new in zip(before, outputs(ema.module, X), strict=True):
        assert relative(new, old) < 1e-12
    ema.update_parameters(model)


def test_wait_keeps_a_feature_until_it_is_dead_in_every_copy():
    model = mlp(width=8, depth=1)
    twin = copy.deepcopy(model)
    x = torch.randn(3, 16, dtype=torch.float64)
    with torch.no_grad():
        model[0].theta[[1, 2]] = 0
        twin[0].theta[[2, 3]] = 0
    gc = sn.GarbageCollector(model, x, follow=twin)
    before = outputs(model, x) + outputs(twin, x)
    assert gc.collect().removed == {"0": 1}
    for old, new in zip(before, outputs(model, x) + outputs(twin, x), strict=True):
        assert relative(new, old) < 1e-12
    dropping = sn.GarbageCollector(model, x, follow=twin, follow_dead="drop")
    assert dropping.collect().removed == {"0": 1} and twin[0].out_features == 6


def test_lists_and_dicts_of_tensors_follow():
    model = mlp(width=8, depth=1)
    shadow = [p.detach().clone() for p in model.parameters()]
    named = {"0.weight": model[0].weight.detach().clone()}
    with torch.no_grad():
        model[0].theta[5] = 0
        shadow[[n for n, _ in model.named_parameters()].index("0.theta")][5] = 0
    rows = named["0.weight"][[0, 1, 2, 3, 4, 6, 7]].clone()
    sn.GarbageCollector(model, torch.randn(3, 16, dtype=torch.float64), follow=[shadow, named]).collect()
    assert [t.shape for t in shadow] == [p.shape for p in model.parameters()]
    assert torch.equal(named["0.weight"], rows)


@pytest.mark.parametrize(
    ("follow", "words"),
    [
        (torch.nn.Linear(2, 2), "follow: Linear does not have the parameters"),
        ({"nope": torch.ones(1)}, "'nope' is no tensor"),
        ([torch.ones(1)], "a list of 1 tensors, expected 5"),
    ],
)
def test_what_does_not_fit_is_named(follow, words):
    with pytest.raises(sn.ShrinkError, match=words):
        sn.GarbageCollector(mlp(depth=1), torch.randn(3, 16, dtype=torch.float64), follow=follow)
    with pytest.raises(sn.ShrinkError, match="follow_dead is 'no'"):
        sn.GarbageCollector(mlp(depth=1), torch.randn(3, 16, dtype=torch.float64), follow_dead="no")


EXACT = {
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01, weight_decay=0.01),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.01, weight_decay=0.01),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.01, weight_decay=0.01),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=1.0, weight_decay=0.01),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.001),
    "asgd": lambda p: torch.optim.ASGD(p, lr=0.05, weight_decay=0.01),
    "adam_foreach": lambda p: torch.optim.Adam(p, lr=0.01, foreach=True),
    "adamw_fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "sgd_fused": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, fused=True),
    "adagrad_foreach": lambda p: torch.optim.Adagrad(p, lr=0.05, foreach=True),
}


@pytest.mark.parametrize("name", EXACT)
def test_the_other_optimizers_are_exact_too(name):
    model = mlp(width=32)
    twin = copy.deepcopy(model)
    runs = []
    for m, collects in ((model, True), (twin, False)):
        optimizer = EXACT[name](m.parameters())
        gc = sn.GarbageCollector(m, torch.randn(2, 16, dtype=torch.float64), optimizers=optimizer, min_dead=0.0)
        train(m, optimizer, 5)
        kill(m)
        runs.append(train(m, optimizer, 20, lam=0.02, after=gc.step if collects else lambda: None))
    assert model[0].out_features < 32 == twin[0].out_features
    assert runs[0] == pytest.approx(runs[1], rel=1e-6)


@pytest.mark.parametrize("name", ["nadam", "radam", "adamax", "adadelta", "asgd"])
def test_their_dead_stay_dead(name):
    model = mlp(width=24, depth=1, dtype=torch.float32)
    optimizer = EXACT[name](model.parameters())
    sn.GarbageCollector(model, torch.randn(2, 16), optimizers=optimizer)
    died = torch.zeros(24, dtype=torch.bool)

    def look():
        assert not bool((model[0].alive & died).any())
        died.logical_or_(~model[0].alive)

    train(model, optimizer, 1000, lam=0.02, after=look)


@pytest.mark.parametrize("kind", ["Adafactor", "Muon"])
def test_states_that_mix_features_are_compacted_and_training_goes_on(kind):
    """Row and column statistics, or an orthogonalised update, see all features: what follows differs, the removal does not."""
    model, x = mlp(), torch.randn(3, 16, dtype=torch.float64)
    matrices = [p for p in model.parameters() if p.dim() == 2]
    optimizer = getattr(torch.optim, kind)(matrices if kind == "Muon" else model.parameters(), lr=1e-3)
    gc = sn.GarbageCollector(model, x, optimizers=optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    bury_all(model)
    kill(model)
    before = outputs(model, x)
    assert gc.collect().removed
    for old, new in zip(before, outputs(model, x), strict=True):
        assert relative(new, old) < 1e-12
    optimizer.zero_grad()
    model(x).square().sum().backward()
    optimizer.step()
    assert all(p.isfinite().all() for p in model.parameters())


def unchanged_after(gc, model, x, words):
    kill(model)
    before, versions = model(x), [p._version for p in model.parameters()]
    with pytest.raises(sn.ShrinkError, match=words):
        gc.collect()
    assert torch.equal(model(x), before) and versions == [p._version for p in model.parameters()]


def test_a_copy_made_in_inference_mode_is_refused_before_anything_moves():
    model, x = torch.nn.Sequential(sn.FilteredLinear(4, 8), torch.nn.Linear(8, 3)), torch.randn(2, 4)
    with torch.inference_mode():
        ema = copy.deepcopy(model)
        kill(ema)
    unchanged_after(sn.GarbageCollector(model, x, follow=[ema]), model, x, "made under torch.inference_mode")


def test_a_sparse_gradient_is_refused_by_name():
    model = torch.nn.Sequential(torch.nn.Embedding(9, 8, sparse=True), sn.Filter(8, dim=-1), torch.nn.Linear(8, 3))
    x = torch.randint(9, (2,))
    gc = sn.GarbageCollector(model, x)
    model(x).sum().backward()
    unchanged_after(gc, model, x, r"0\.weight: its gradient has layout torch.sparse_coo")


def test_state_in_lists_is_refused_by_name():
    model, x = torch.nn.Sequential(sn.FilteredLinear(4, 8), torch.nn.Linear(8, 3)), torch.randn(2, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gc = sn.GarbageCollector(model, x, optimizers=optimizer)
    optimizer.state[model[0].weight]["preconditioners"] = [torch.zeros(8, 8)]
    unchanged_after(gc, model, x, "state 'preconditioners' is a list of tensors")


def test_constants_stay_where_they_are_if_the_collection_is_refused():
    model = torch.nn.Sequential(sn.FilteredLinear(4, 8), torch.nn.Sigmoid(), torch.nn.Linear(8, 3))
    x = torch.randn(2, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gc = sn.GarbageCollector(model, x, optimizers=optimizer)
    kill(model)
    optimizer.state[model[2].weight]["odd"] = torch.zeros(7, 7)
    before = model(x)
    with pytest.raises(sn.ShrinkError, match="odd"):
        gc.collect_constants()
    assert torch.equal(model(x), before)
