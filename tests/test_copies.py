"""What goes along besides the model: EMA copies, and optimizers whose state is not shaped like the parameter."""

import copy

import pytest
import torch
from networks import conv_net, kill, mlp, outputs, relative
from test_optimizers import train

import shrinknets_fast as sn
from shrinknets_fast.depth import Gated
from shrinknets_fast.folding import collect_constants

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


def test_state_that_fits_nowhere_is_refused_by_name():
    model, x = torch.nn.Sequential(sn.FilteredLinear(4, 8), torch.nn.Linear(8, 3)), torch.randn(2, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gc = sn.GarbageCollector(model, x, optimizers=optimizer)
    optimizer.state[next(model.parameters())]["blocks"] = [torch.zeros(8, 7)]
    unchanged_after(gc, model, x, r"SGD: state 'blocks\[0\]' has shape \(8, 7\), expected the parameter's \(8, 4\)")


def test_constants_stay_where_they_are_if_the_collection_is_refused():
    model = torch.nn.Sequential(sn.FilteredLinear(4, 8), torch.nn.Sigmoid(), torch.nn.Linear(8, 3))
    x = torch.randn(2, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gc = sn.GarbageCollector(model, x, optimizers=optimizer)
    kill(model)
    optimizer.state[model[2].weight]["odd"] = torch.zeros(7, 7)
    before = model(x)
    with pytest.raises(sn.ShrinkError, match="odd"):
        collect_constants(gc._reading, gc._companions)
    assert torch.equal(model(x), before)


class Res(torch.nn.Module):
    """Three residual branches on one trunk."""

    def __init__(self):
        super().__init__()
        self.i, self.o = torch.nn.Linear(10, 8), torch.nn.Linear(8, 3)
        branches = (
            torch.nn.Sequential(torch.nn.Linear(8, 12), torch.nn.ReLU(), torch.nn.Linear(12, 8)) for _ in range(3)
        )
        self.b = torch.nn.ModuleList(branches)

    def forward(self, x):
        x = self.i(x)
        for b in self.b:
            x = x + b(x)
        return self.o(x)


V = torch.randn(6, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def res():
    return sn.add_filters(Res().double(), V, depth=True, residual="tied")


def dead(theta, n):
    with torch.no_grad():
        theta[:n] = 0


def branches_there(model):
    return [not m.vanished for m in model.modules() if isinstance(m, Gated)]


def test_a_branch_that_leaves_the_model_leaves_the_copies():
    model = res()
    ema = torch.optim.swa_utils.AveragedModel(model)
    named = {k: v.detach().clone() for k, v in model.named_parameters()}
    gc = sn.GarbageCollector(model, V, follow=[ema, named])
    for gate in (model.b[1].gate.theta, ema.module.b[1].gate.theta, named["b.1.1.theta"]):
        dead(gate, 1)
    before = outputs(model, V) + outputs(ema, V)
    assert gc.collect().branches == ("b.1",)
    assert branches_there(model) == branches_there(ema) == [True, False, True]
    assert list(named) == [name for name, _ in model.named_parameters()]
    for old, new in zip(before, outputs(model, V) + outputs(ema, V), strict=True):
        assert relative(new, old) < 1e-12
    for theta in (model.i.theta, ema.module.i.theta, named["i.theta"]):
        dead(theta, 2)
    ema.update_parameters(model), ema.update_parameters(model)
    before = outputs(model, V) + outputs(ema, V)
    assert gc.collect().removed == {"i": 2}
    for old, new in zip(before, outputs(model, V) + outputs(ema, V), strict=True):
        assert relative(new, old) < 1e-12
    ema.update_parameters(model)
    assert {k: v.shape for k, v in named.items()} == {k: v.shape for k, v in model.named_parameters()}


@pytest.mark.parametrize("follow_dead", ["wait", "drop"])
def test_a_branch_that_is_closed_in_the_model_only(follow_dead):
    model = res()
    ema, named = copy.deepcopy(model), {k: v.detach().clone() for k, v in model.named_parameters()}
    gc = sn.GarbageCollector(model, V, follow=[ema, named], follow_dead=follow_dead)
    dead(model.b[1].gate.theta, 1)
    closed = copy.deepcopy(ema)
    before = outputs(ema, V)
    if follow_dead == "drop":
        dead(closed.b[1].gate.theta, 1)
        before = outputs(closed, V)
    assert gc.collect().branches == (("b.1",) if follow_dead == "drop" else ())
    for old, new in zip(before, outputs(ema, V), strict=True):
        assert relative(new, old) < 1e-12
    assert len(named) == len(list(model.parameters())) == len(list(ema.parameters()))
    assert float(named["b.1.1.theta"]) == (0 if follow_dead == "drop" else 1)


def test_with_a_list_a_branch_stays():
    model = res()
    shadow = [p.detach().clone() for p in model.parameters()]
    gc = sn.GarbageCollector(model, V, follow=[shadow], follow_dead="drop")
    dead(model.b[1].gate.theta, 1)
    before = model(V)
    assert gc.collect().branches == ()
    assert relative(model(V), before) < 1e-12
    assert [t.shape for t in shadow] == [p.shape for p in model.parameters()]


@pytest.mark.parametrize("follow_dead", ["wait", "drop"])
@pytest.mark.parametrize("kind", [dict, list])
def test_updates_that_put_new_tensors_into_a_dict_or_list(kind, follow_dead):
    model = mlp(width=8, depth=1)
    keys = [k for k, _ in model.named_parameters()] if kind is dict else range(5)
    ema = [p.detach().clone() for p in model.parameters()]
    ema = dict(zip(keys, ema, strict=True)) if kind is dict else ema
    gc = sn.GarbageCollector(model, torch.randn(3, 16, dtype=torch.float64), follow=ema, follow_dead=follow_dead)

    def update():
        with torch.no_grad():
            for k, p in zip(keys, model.parameters(), strict=True):
                ema[k] = ema[k] * 0.5 + p * 0.5

    update()
    dead(model[0].theta, 3)
    place = [k for k, p in zip(keys, model.parameters(), strict=True) if p is model[0].theta][0]
    if follow_dead == "wait":
        assert gc.collect().removed == {}
        dead(ema[place], 3)
    assert gc.collect().removed == {"0": 3}
    update()
    assert [ema[k].shape for k in keys] == [p.shape for p in model.parameters()]
    dead(ema[place], 1), dead(model[0].theta, 1)
    assert gc.collect().removed == {"0": 1}


def test_a_dict_with_all_names_of_a_tied_parameter():
    model = res()
    ema = {k: v.clone() for k, v in model.state_dict().items()}
    gc = sn.GarbageCollector(model, V, follow=ema)
    dead(model.i.theta, 2)
    for k in ("i.theta", "b.0.0.2.theta", "b.1.0.2.theta"):
        dead(ema[k], 2)
    assert gc.collect().removed == {}
    dead(ema["b.2.0.2.theta"], 2)
    assert gc.collect().removed == {"i": 2}
    assert {k: v.shape for k, v in ema.items()} == {k: v.shape for k, v in model.state_dict().items()}


def test_a_copy_that_is_followed_twice_moves_once():
    model = mlp(width=8, depth=1)
    ema = copy.deepcopy(model)
    state = ema.state_dict()
    gc = sn.GarbageCollector(model, torch.randn(3, 16, dtype=torch.float64), follow=[ema, state, ema])
    kill(model), kill(ema)
    rows = state["0.weight"][ema[0].alive].clone()
    assert gc.collect().removed
    assert torch.equal(ema[0]._parameters["weight"], rows) and torch.equal(state["0.weight"], rows)
    assert all(state[k].data_ptr() == p.data_ptr() for k, p in ema.named_parameters())


def test_the_parameters_own_memory_is_no_copy():
    model, x = mlp(width=8, depth=1), torch.randn(3, 16, dtype=torch.float64)
    for own in ([[p.detach() for p in model.parameters()]], [model.state_dict()]):
        with pytest.raises(sn.ShrinkError, match=r"follow: 0\.weight is the parameter's own memory"):
            sn.GarbageCollector(model, x, follow=own)


@pytest.mark.parametrize("how", ["one tensor for two", "overlapping"])
def test_copies_that_lie_over_each_other_are_refused(how):
    model, x = (
        torch.nn.Sequential(sn.FilteredLinear(4, 8), sn.FilteredLinear(8, 8), torch.nn.Linear(8, 3)),
        torch.randn(2, 4),
    )
    both = torch.ones(9)
    pair = (
        {"0.bias": both[:8], "1.bias": both[1:]}
        if how == "overlapping"
        else dict.fromkeys(("0.bias", "1.bias"), both[:8])
    )
    gc = sn.GarbageCollector(model, x, follow=pair)
    unchanged_after(gc, model, x, r"0\.bias and 1\.bias")


def test_the_models_own_tensors_are_no_copies():
    first, second = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
    model = torch.nn.Sequential(sn.FilteredLinear(4, 4), first, second)
    with pytest.raises(sn.ShrinkError, match=r"1.weight is the model's own 2.weight there, expected a copy"):
        sn.GarbageCollector(model, torch.randn(3, 4), follow={"1.weight": second.weight})
