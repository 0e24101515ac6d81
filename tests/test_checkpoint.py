import pytest
import torch
from networks import conv_net, kill, relative
from test_placement import add, data
from test_residual import Whole

import shrinknets_fast as sn

X = torch.randn(4, 1, 14, 14, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def shrunk():
    model = conv_net()
    model(X)
    kill(model)
    gc = sn.GarbageCollector(model, X)
    gc.collect()
    gc.trim()
    return model.eval()


def test_a_shrunk_checkpoint_loads_into_a_fresh_model(tmp_path):
    model = shrunk()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    fresh = conv_net().eval()
    identities = [id(p) for p in fresh.parameters()]
    sn.load_state_dict(fresh, torch.load(tmp_path / "model.pt", weights_only=True))
    assert relative(fresh(X), model(X)) < 1e-14
    assert identities == [id(p) for p in fresh.parameters()]
    assert fresh[4].in_features == model[4].in_features == 8 * 16
    optimizer = torch.optim.Adam(fresh.parameters())
    gc = sn.GarbageCollector(fresh.train(), X, optimizers=optimizer)
    fresh(X).sum().backward()
    optimizer.step()
    kill(fresh)
    assert gc.collect().removed


def test_a_checkpoint_holds_live_bytes_only(tmp_path):
    torch.save(conv_net().state_dict(), tmp_path / "full.pt")
    torch.save(shrunk().state_dict(), tmp_path / "shrunk.pt")
    assert (tmp_path / "shrunk.pt").stat().st_size < 0.6 * (tmp_path / "full.pt").stat().st_size


def test_the_order_in_memory_is_the_fresh_models():
    fresh = conv_net().to(memory_format=torch.channels_last)
    sn.load_state_dict(fresh, shrunk().state_dict())
    weight = fresh[2][0].weight
    assert weight.shape[1] > 1 and weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("4.theta"), r"missing \['4.theta'\]"),
        (lambda s: s.update(extra=torch.ones(1)), r"unexpected \['extra'\]"),
        (lambda s: s.update({"4.bias": torch.ones(99)}), r"4.bias has shape \(99,\), expected at most \(40,\)"),
        (lambda s: s.update({"4.bias": torch.ones(2, 2)}), r"4.bias has shape \(2, 2\)"),
    ],
)
def test_what_does_not_fit_changes_nothing(change, words):
    state, fresh = shrunk().state_dict(), conv_net()
    change(state)
    before = {k: v.clone() for k, v in fresh.state_dict().items()}
    with pytest.raises(sn.ShrinkError, match=words):
        sn.load_state_dict(fresh, state)
    assert all(torch.equal(v, before[k]) for k, v in fresh.state_dict().items())


def gated():
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), Whole(6), torch.nn.Linear(6, 2))
    return add(model, data(5, 4), depth=True)


def test_a_branch_that_left_the_checkpoint_leaves_the_fresh_model():
    model, x = gated(), data(5, 4)
    with torch.no_grad():
        model[1].branch.gate.theta.zero_()
    sn.GarbageCollector(model, x).collect()
    fresh = gated().eval()
    sn.load_state_dict(fresh, model.state_dict())
    assert torch.equal(fresh(x), model(x)) and list(fresh.state_dict()) == list(model.state_dict())
    assert not fresh[1].branch[0].training
    sn.GarbageCollector(fresh, x, optimizers=torch.optim.Adam(fresh.parameters())).collect()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.update({"1.branch.1.theta": torch.ones(1)}), r"missing \['1.branch.0"),
        (lambda s: s.update({"0.bias": torch.ones(99)}), "0.bias has shape"),
        (lambda s: s.pop("0.bias"), r"missing \['0.bias'\]"),
    ],
)
def test_a_branch_stays_where_the_checkpoint_does_not_fit(change, words):
    model = gated()
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("1.branch.0.")}
    state["1.branch.1.theta"] = torch.zeros(1)
    change(state)
    with pytest.raises(sn.ShrinkError, match=words):
        sn.load_state_dict(model, state)
    assert not model[1].branch.vanished


class Scaled(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = sn.FilteredLinear(6, 8, init=1.0), torch.nn.Linear(8, 3)
        self.register_buffer("scale", torch.linspace(0.5, 1.5, 8), persistent=False)

    def forward(self, x):
        return self.second(self.first(x) * self.scale)


def test_a_buffer_that_is_in_no_checkpoint_is_in_them_once_it_shrinks():
    model, x = Scaled(), torch.randn(4, 6)
    gc = sn.GarbageCollector(model, x)
    assert "scale" not in model.state_dict()
    with torch.no_grad():
        model.first.theta[1:4] = 0
    gc.collect()
    fresh = Scaled()
    sn.load_state_dict(fresh, model.state_dict())
    assert torch.equal(fresh(x), model(x))
    assert fresh.state_dict().keys() == model.state_dict().keys()
    with pytest.raises(sn.ShrinkError, match="unexpected"):
        sn.load_state_dict(torch.nn.Sequential(), model.state_dict())
