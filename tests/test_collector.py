"""The collector from outside: exactness, what follows, what is refused."""

import copy
import pickle
import warnings

import pytest
import torch
from networks import conv_net, kill, mlp, outputs, relative
from test_optimizers import OPTIMIZERS, train
from torch import nn

import shrinknets_fast as sn

IMAGE = (6, 1, 14, 14)


def image(dtype=torch.float64):
    return torch.randn(IMAGE, generator=torch.Generator().manual_seed(1)).to(dtype)


def test_removal_changes_outputs_by_rounding_only_in_both_modes():
    model, x = conv_net(), image()
    for module in model.modules():  # statistics and affine parameters that are not at their trivial start
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(), module.running_var.uniform_(0.5, 2)
            nn.init.normal_(module.weight), nn.init.normal_(module.bias)
    kill(model)
    gc = sn.GarbageCollector(model, x)
    before = outputs(model, x)
    collection = gc.collect()
    assert collection.removed == {"0": 3, "2.1": 4, "4": 16, "7": 8}
    for old, new in zip(before, outputs(model, x), strict=True):
        assert relative(new, old) < 1e-13
    assert collection.bytes_freed > 0 and collection.bytes_moved > 0 and collection.milliseconds > 0
    assert sn.features(model) == {"0": (5, 5), "2.1": (8, 8), "4": (24, 24), "7": (12, 12)}


def test_every_tensor_and_attribute_has_the_new_size():
    model, x = conv_net(), image()
    kill(model)
    gc = sn.GarbageCollector(model, x)
    gc.collect()
    conv, inner, norm, dense, plain, head = model[0], model[2][0], model[2][1], model[4], model[5], model[8]
    assert (conv.in_channels, conv.out_channels) == (1, 5) and conv.weight.shape == (5, 1, 3, 3)
    assert (inner.in_channels, inner.out_channels) == (5, 8) and inner.weight.shape == (8, 5, 3, 3)
    assert norm.num_features == 8 and norm.running_var.shape == norm.theta.shape == norm.bias.shape == (8,)
    assert (dense.in_features, dense.out_features) == (8 * 16, 24) and dense.weight.shape == (24, 128)
    assert (plain.in_features, plain.out_features) == (24, 12)
    assert (head.in_features, head.out_features) == (12, 10)
    assert all(p.is_contiguous() for p in model.parameters())
    gc.trim(waste=0)
    assert all(p.untyped_storage().nbytes() == p.nbytes for p in model.parameters())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_loss_trajectory_is_the_one_without_collection(name):
    torch.manual_seed(0)
    model = mlp(width=32)
    twin = copy.deepcopy(model)
    runs = []
    for m, collects in ((model, True), (twin, False)):
        optimizer = OPTIMIZERS[name](m.parameters())
        gc = sn.GarbageCollector(m, torch.randn(2, 16, dtype=torch.float64), optimizers=optimizer, min_dead=0.0)
        train(m, optimizer, 5)
        kill(m)
        removed = []
        losses = train(
            m, optimizer, 20, lam=0.05, after=lambda c=collects, g=gc, r=removed: r.append(g.step()) if c else None
        )
        runs.append(losses)
        assert any(r and r.removed for r in removed) == collects
    assert model[0].out_features < 32 == twin[0].out_features
    for ours, theirs in zip(*runs, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-6 * abs(theirs) + 1e-9)


def test_identity_gradients_flags_and_optimizer_state_go_along():
    model, x = conv_net(), image()
    model[5].weight.requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    gc = sn.GarbageCollector(model, x, optimizers=optimizer)
    model(x).square().sum().backward()
    optimizer.step()
    model(x).square().sum().backward()  # pending accumulation
    kill(model)
    alive = model[4].alive
    before = {
        k: (id(p), p.detach().clone(), None if p.grad is None else p.grad.clone()) for k, p in model.named_parameters()
    }
    own = model[4]._parameters
    state = {k: v.clone() for k, v in optimizer.state[own["weight"]].items()}
    buffers = {k: id(b) for k, b in model.named_buffers()}
    gc.collect()
    columns = torch.nn.functional.pad(model[2][1].running_mean, (0, 0)).numel() * 16
    assert model[4].weight.shape == (int(alive.sum()), columns)
    for k, p in model.named_parameters():
        assert id(p) == before[k][0] and isinstance(p, nn.Parameter)
        assert (p.grad is None) == (before[k][2] is None)
        assert p.grad is None or p.grad.shape == p.shape
    assert not model[5].weight.requires_grad and model[4].weight.requires_grad
    assert buffers == {k: id(b) for k, b in model.named_buffers()}
    assert torch.equal(own["bias"], before["4.bias"][1][alive])
    assert torch.equal(own["bias"].grad, before["4.bias"][2][alive])
    kept = optimizer.state[own["weight"]]
    assert kept["exp_avg"].shape == model[4].weight.shape and kept["step"] == state["step"]
    row = state["exp_avg"][alive]
    assert all(bool((row == column[:, None]).all(0).any()) for column in kept["exp_avg"].T[:5])
    optimizer.step()


def test_channels_last_weights_stay_channels_last():
    model = nn.Sequential(sn.FilteredConv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.LazyLinear(2))
    model(torch.randn(1, 3, 8, 8))
    model = model.double().to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64).to(memory_format=torch.channels_last)
    kill(model)
    before = outputs(model, x)
    sn.GarbageCollector(model, x).collect()
    assert model[1].weight.is_contiguous(memory_format=torch.channels_last) and not model[1].weight.is_contiguous()
    assert relative(outputs(model, x)[0], before[0]) < 1e-13


def test_planning_and_tracing_change_nothing():
    model, x = conv_net(), image()
    kill(model)
    state = {k: (v.data_ptr(), v._version, v.clone()) for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    random = torch.get_rng_state()
    gc = sn.GarbageCollector(model, x)
    plan = gc.plan()
    gc.explain()
    assert plan.removed == {"0": 3, "2.1": 4, "4": 16, "7": 8}
    assert torch.equal(random, torch.get_rng_state())
    assert modes == [m.training for m in model.modules()]
    for k, v in model.state_dict().items():
        assert (v.data_ptr(), v._version) == state[k][:2] and torch.equal(v, state[k][2])
    text = str(plan)
    assert len(text.splitlines()) >= 6 and "removed" in text and "bytes are freed" in text
    freed = plan.bytes_freed
    assert gc.collect().bytes_freed == freed


def test_collecting_does_not_touch_the_random_state():
    model, x = conv_net(), image()
    gc = sn.GarbageCollector(model, x)
    kill(model)
    random = torch.get_rng_state()
    assert gc.collect().removed
    assert torch.equal(random, torch.get_rng_state())


def test_step_waits_for_min_dead_and_looks_every_nth_time():
    model = mlp(width=100, depth=1)
    gc = sn.GarbageCollector(model, torch.randn(2, 16, dtype=torch.float64), min_dead=0.1, every=3)
    with torch.no_grad():
        model[0].theta[:9] = 0
    assert [gc.step() for _ in range(6)] == [None] * 6
    with torch.no_grad():
        model[0].theta[:10] = 0
    assert gc.step() is None and gc.step() is None
    assert gc.step().removed == {"0": 10}
    assert model[0].out_features == 90


def test_collect_takes_whatever_is_dead():
    model = mlp(width=100, depth=1)
    gc = sn.GarbageCollector(model, torch.randn(2, 16, dtype=torch.float64), min_dead=0.5)
    assert gc.collect().removed == {}
    with torch.no_grad():
        model[0].theta[3] = 0
    assert gc.collect().removed == {"0": 1}


@pytest.mark.parametrize(("dead", "left"), [(30, 72), (4, 96), (3, 100), (0, 100), (100, 8)])
def test_align_keeps_multiples_where_the_dead_allow(dead, left):
    model = mlp(width=100, depth=1)
    x = torch.randn(2, 16, dtype=torch.float64)
    gc = sn.GarbageCollector(model, x, align=8)
    with torch.no_grad():
        model[0].theta[:dead] = 0
    before = outputs(model, x)
    gc.collect() if dead < 100 else pytest.warns(UserWarning, gc.collect)
    assert model[0].out_features == left
    assert relative(outputs(model, x)[0], before[0]) < 1e-13


def test_random_share_is_seeded_and_planning_does_not_use_it_up():
    kept = []
    for _ in range(2):
        model = mlp(width=100, depth=1)
        gc = sn.GarbageCollector(model, torch.randn(2, 16, dtype=torch.float64), removal=0.5, seed=3)
        with torch.no_grad():
            model[0].theta[:40] = 0
        gc.plan()
        gc.on_removed(lambda name, k: kept.append((name, k)))
        gc.collect()
        assert model[0].out_features == 80 and sn.features(model)["0"] == (60, 80)
    assert kept[0][0] == "0" and torch.equal(kept[0][1], kept[1][1])
    assert not torch.equal(kept[0][1], torch.arange(20, 100))
    state = gc.state_dict()
    gc.load_state_dict(state)
    assert gc.state_dict()["steps"] == state["steps"]


def test_on_removed_tells_what_stayed_until_the_handle_is_removed():
    model = mlp(width=8)
    gc = sn.GarbageCollector(model, torch.randn(2, 16, dtype=torch.float64))
    told = []
    handle = gc.on_removed(lambda name, kept: told.append((name, kept.tolist())))
    with torch.no_grad():
        model[1].theta[[1, 6]] = 0
    gc.collect()
    assert told == [("1", [0, 2, 3, 4, 5, 7])]
    handle.remove()
    with torch.no_grad():
        model[0].theta[0] = 0
    gc.collect()
    assert len(told) == 1


def test_all_dead_keeps_one_as_padding_with_a_warning():
    model, x = conv_net(), image()
    gc = sn.GarbageCollector(model, x)
    with torch.no_grad():
        model[0].theta.zero_()
        model[4].theta.fill_(-1)
    before = outputs(model, x)
    with pytest.warns(UserWarning, match="all its features are dead"):
        gc.collect()
    assert model[0].out_channels == 1 and model[4].out_features == 1
    for old, new in zip(before, outputs(model, x), strict=True):
        assert relative(new, old) < 1e-13
    assert gc.collect().removed == {}


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_theta_that_is_not_finite_is_an_error_that_names_it(poison):
    model = mlp()
    gc = sn.GarbageCollector(model, torch.randn(2, 16, dtype=torch.float64))
    with torch.no_grad():
        model[1].theta[3] = poison
        model[0].theta[:9] = 0
    for call in (gc.step, gc.collect, gc.plan):
        with pytest.raises(sn.ShrinkError, match=rf"1\.theta holds {poison}"):
            call()
    assert model[0].out_features == 32


class Baked(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = sn.FilteredConv2d(1, 8, 3), nn.Linear(800, 4)

    def forward(self, x):
        return self.fc(self.conv(x).view(-1, 800))


def test_a_width_written_into_the_forward_stays_with_the_line_to_blame():
    model, x = Baked(), torch.randn(2, 1, 12, 12)
    gc = sn.GarbageCollector(model, x)
    kill(model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.warns(UserWarning, match=r"conv keeps its 8 features: Baked cannot run at conv=5.*view\(-1, 800\)"):
        assert not gc.collect().removed
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        assert not gc.collect().removed and "view(-1, 800)" in gc.explain() and "view(-1, 800)" in str(gc.plan())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.conv.out_channels == 8


def test_a_width_that_moves_into_the_batch_never_leaves():
    class Moves(Baked):
        def forward(self, x):
            return self.conv(x).view(-1, 400).sum(1)

    model, x = Moves(), torch.randn(4, 1, 12, 12)
    gc = sn.GarbageCollector(model, x)
    with torch.no_grad():
        model.conv.theta[[0, 4]] = 0  # both halves of a row of 400
    try:
        assert gc.collect().removed == {}  # kept, or refused: never a batch of another size
    except sn.ShrinkError as error:
        assert "written into the code" in str(error)
    assert model.conv.out_channels == 8 and model(x).shape == (8,)


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = sn.FilteredLinear(4, 4)

    def forward(self, x):
        return self.fc(x) if x.sum() > 0 else x


def test_control_flow_that_depends_on_data_is_refused_in_short():
    with pytest.raises(sn.ShrinkError, match="Branches cannot be traced") as error:
        sn.GarbageCollector(Branches(), torch.randn(2, 4))
    assert "\n" not in str(error.value) and len(str(error.value).replace(__file__, "")) < 500
    assert "torch.cond" in str(error.value)


def test_a_collection_that_cannot_be_carried_out_changes_nothing():
    model, x = conv_net(), image()
    optimizer = torch.optim.Adam(model.parameters())
    gc = sn.GarbageCollector(model, x, optimizers=optimizer)
    model(x).sum().backward()
    optimizer.step()
    kill(model)
    last = model[8].weight
    optimizer.state[last]["odd"] = torch.ones(7, 3)
    before = {k: (v.data_ptr(), v.clone()) for k, v in model.state_dict().items()}
    with pytest.raises(
        sn.ShrinkError, match=r"Adam: state 'odd' has shape \(7, 3\), expected the parameter's \(10, 20\)"
    ):
        gc.collect()
    for k, v in model.state_dict().items():
        assert v.data_ptr() == before[k][0] and torch.equal(v, before[k][1])
    assert sn.features(model)["0"] == (5, 8) and model[0].out_channels == 8
    del optimizer.state[last]["odd"]
    assert gc.collect().removed == {"0": 3, "2.1": 4, "4": 16, "7": 8}


def test_example_inputs_that_do_not_fit_are_named():
    with pytest.raises(sn.ShrinkError, match="example_inputs do not fit Sequential.forward"):
        sn.GarbageCollector(mlp(), (torch.randn(2, 16), 3))


@pytest.mark.parametrize(
    "bad",
    [{"every": 0}, {"align": 0}, {"align": 1.5}, {"min_dead": -0.1}, {"removal": 0}, {"removal": 2}, {"every": True}],
)
def test_bad_options_are_named(bad):
    ((name, value),) = bad.items()
    with pytest.raises(sn.ShrinkError, match=f"{name} is {value}"):
        sn.GarbageCollector(mlp(), torch.randn(2, 16, dtype=torch.float64), **bad)


def test_a_model_that_changed_since_it_was_traced_is_noticed():
    def collector():
        model = mlp()
        kill(model)
        return model, sn.GarbageCollector(model, torch.randn(2, 16, dtype=torch.float64))

    model, gc = collector()
    model[2] = nn.Linear(32, 4).double()
    with pytest.raises(sn.ShrinkError, match=r"2\.weight was replaced"):
        gc.collect()
    assert model[0].out_features == 32
    model, gc = collector()
    model.load_state_dict(model.state_dict(), assign=True)
    with pytest.raises(sn.ShrinkError, match="was replaced"):
        gc.plan()
    model, gc = collector()
    with torch.no_grad():
        model[1]._parameters["bias"].set_(torch.zeros(3, dtype=torch.float64))
    with pytest.raises(sn.ShrinkError, match=r"1\.bias has shape \(3,\), expected \(32,\)"):
        gc.collect()


def test_a_graph_from_before_the_collection_cannot_do_harm():
    model = mlp()
    x = torch.randn(8, 16, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gc = sn.GarbageCollector(model, x, optimizers=optimizer)
    loss = model(x).sum()
    kill(model)
    gc.collect()
    with pytest.raises((RuntimeError, sn.ShrinkError)):
        loss.backward()
        optimizer.step()


def test_explain_names_makers_readers_and_the_op_to_blame():
    model = nn.Sequential(
        sn.FilteredLinear(6, 8),
        nn.Sigmoid(),
        nn.Linear(8, 8),
        nn.LayerNorm(8),
        sn.FilteredLinear(8, 5),
        nn.Linear(5, 2),
    )
    text = sn.GarbageCollector(model, torch.randn(2, 6)).explain()
    blocks = {b.split(":")[0]: b for b in text.replace("\n    ", "\t").splitlines()}
    assert "kept: is not zero where 2 (linear) reads it" in blocks["0"]
    assert "made by 0 (linear)" in blocks["0"] and "read by 2 (linear)" in blocks["0"]
    assert "can shrink" in blocks["4"] and "read by 5 (linear)" in blocks["4"]
    assert "is the model's output" in blocks["5"]
    assert "layer_norm" in blocks["2"]


def test_tied_weights_unify_their_hubs():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = sn.FilteredLinear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
            with sn.unfolded():
                self.b.weight = self.a.weight
            self.head = nn.Linear(6, 2)

        def forward(self, x):
            return self.head(self.b(self.a(x)))

    model, x = Tied().double(), torch.randn(3, 6, dtype=torch.float64)
    kill(model)
    before = outputs(model, x)
    gc = sn.GarbageCollector(model, x)
    gc.collect()
    assert relative(outputs(model, x)[0], before[0]) < 1e-13
    with sn.unfolded():
        assert model.b.weight is model.a.weight


def test_shared_theta_removes_a_feature_where_both_layers_lose_it():
    theta = nn.Parameter(torch.ones(8, dtype=torch.float64))
    model = nn.Sequential(
        sn.FilteredLinear(4, 8, theta=theta), nn.Linear(8, 3), sn.FilteredLinear(3, 8, theta=theta), nn.Linear(8, 2)
    ).double()
    model[2].theta = model[0].theta = theta
    x = torch.randn(3, 4, dtype=torch.float64)
    with torch.no_grad():
        theta[2:5] = 0
    before = outputs(model, x)
    gc = sn.GarbageCollector(model, x)
    gc.collect()
    assert theta.shape == (5,) and model[0].out_features == model[2].out_features == 5
    assert relative(outputs(model, x)[0], before[0]) < 1e-13


def test_several_optimizers_and_parameters_in_several_groups():
    model, x = mlp(), torch.randn(8, 16, dtype=torch.float64)
    groups = sn.param_groups(model, lr=0.01, filter_lr=0.1, weight_decay=0.1)
    first, second = torch.optim.AdamW(groups[:1]), torch.optim.SGD(groups[1:], momentum=0.9)
    gc = sn.GarbageCollector(model, x, optimizers=[first, second])
    for _ in range(3):
        model(x).square().sum().backward()
        first.step(), second.step()
    kill(model)
    left = int(model[0].alive.sum()), int(model[1].alive.sum())
    gc.collect()
    model(x).square().sum().backward()
    first.step(), second.step()
    assert second.state[model[0].theta]["momentum_buffer"].shape == model[0].theta.shape
    with sn.unfolded():
        assert first.state[model[1].weight]["exp_avg"].shape == model[1].weight.shape == left[::-1]


def test_a_resumed_collector_leaves_what_the_original_would_leave():
    torch.manual_seed(0)
    model, x = mlp(width=16), torch.randn(3, 16, dtype=torch.float64)
    gc = sn.GarbageCollector(model, x, removal=0.5, seed=3)
    kill(model)
    assert gc.step().removed
    twin = copy.deepcopy(model)
    resumed = sn.GarbageCollector(twin, x, removal=0.5)
    state = gc.state_dict()
    resumed.load_state_dict(state)
    assert gc.step() is None and resumed.step() is None
    older = {k: v for k, v in state.items() if k != "seen"}
    resumed.load_state_dict(older)
    assert resumed.step().removed


def test_a_copy_of_a_model_that_holds_its_collector_has_none():
    model, x = mlp(), torch.randn(4, 16, dtype=torch.float64)
    model.gc = sn.GarbageCollector(model, x)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with pytest.raises(
            sn.ShrinkError, match="^step: this came with a copy of a model; make a new GarbageCollector"
        ):
            twin.gc.step()
    assert model.gc.step() is None


def test_a_statistic_that_only_a_buffer_holds_is_wanted_beside_a_dead_layer():
    class Counted(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = sn.FilteredLinear(6, 8), sn.FilteredLinear(6, 8)
            self.read_first, self.read_second = nn.Linear(8, 3), nn.Linear(8, 3)
            self.register_buffer("level", torch.zeros(()))

        def forward(self, x):
            h = self.first(x)
            self.level.copy_(h.detach().exp().sum())  # 1 of each dead feature
            return self.read_first(h) + self.read_second(self.second(x))

    model, x = Counted().double(), torch.randn(5, 6, dtype=torch.float64)
    gc = sn.GarbageCollector(model, x)
    with torch.no_grad():
        model.first.theta[:2] = 0
        model.second.theta.zero_()
    model(x)
    level = model.level.clone()
    with pytest.warns(UserWarning, match="one stays as padding"):
        assert gc.collect().removed == {"second": 7}
    model(x)
    assert torch.equal(model.level, level)


def test_what_the_model_returns_is_wanted_though_only_a_dead_layer_reads_it():
    class Auxiliary(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.middle = sn.FilteredLinear(6, 8), nn.Linear(8, 4)
            self.dead, self.last = sn.FilteredLinear(4, 5), nn.Linear(5, 3)

        def forward(self, x):
            middle = self.middle(self.first(x))
            return middle, self.last(self.dead(middle))

    model, x = Auxiliary().double(), torch.randn(5, 6, dtype=torch.float64)
    gc = sn.GarbageCollector(model, x)
    with torch.no_grad():
        model.dead.theta.zero_()
    before = model(x)
    with pytest.warns(UserWarning, match="one stays as padding"):
        assert gc.collect().removed == {"dead": 4}
    assert all(relative(a, b) < 1e-13 for a, b in zip(model(x), before, strict=True))
