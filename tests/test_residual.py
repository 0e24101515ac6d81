"""Residual networks: trunks with one theta, gates, and branches that leave."""

import pytest
import torch
from networks import outputs, relative
from test_placement import add, data, filters
from torch import nn

import shrinknets_fast as sn
from shrinknets_fast.depth import Gated


class Block(nn.Module):
    """conv - norm - relu - conv - norm inside; the skip is the input, or a projection of it."""

    def __init__(self, inputs, width, outputs):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.skip = None
        if inputs != outputs:
            self.skip = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x if self.skip is None else self.skip(x)
        return self.relu(out)


class Whole(nn.Module):
    """A residual block whose branch is one module."""

    def __init__(self, width):
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))

    def forward(self, x):
        return x + self.branch(x)


def resnet():
    blocks = [Block(4, 12, 4), Block(4, 10, 4), Block(4, 12, 8), Block(8, 6, 8)]
    stem = [nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()]
    model = nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight), nn.init.normal_(module.bias)
            module.running_mean.normal_(), module.running_var.uniform_(0.5, 2)
    return model


X = data(3, 1, 8, 8)


def test_the_writers_of_a_trunk_share_one_theta_and_the_trunk_shrinks():
    model = add(resnet(), X, residual="tied")
    assert model[1].theta is model[3].bn2.theta is model[4].bn2.theta
    assert model[5].bn2.theta is model[5].skip[1].theta is model[6].bn2.theta
    assert all(type(m) is nn.Conv2d for m in model.modules() if isinstance(m, nn.Conv2d))
    with torch.no_grad():
        model[1].theta[2] = model[5].bn2.theta[3] = model[5].bn2.theta[7] = 0
    before = outputs(model, X)
    assert sn.GarbageCollector(model, X).collect().removed == {"1": 1, "5.bn2": 2}
    assert model[3].conv1.in_channels == 3 and model[9].in_features == 6
    for old, new in zip(before, outputs(model, X), strict=True):
        assert relative(new, old) < 1e-12


def test_inner_leaves_the_trunk_alone():
    assert set(filters(add(resnet(), X))) == {"3.bn1", "4.bn1", "5.bn1", "6.bn1"}


def test_a_gate_behind_every_branch():
    model = add(resnet(), X, depth=True)
    gates = [n for n, m in model.named_modules() if isinstance(m, Gated)]
    assert gates == ["3.bn2", "4.bn2", "5.bn2", "6.bn2"]
    whole = add(nn.Sequential(nn.Linear(4, 6), Whole(6), nn.Linear(6, 2)), data(5, 4), depth=True)
    assert [n for n, m in whole.named_modules() if isinstance(m, Gated)] == ["1.branch"]


@pytest.mark.parametrize("block", [3, 4, 6])
def test_a_closed_branch_shrinks_to_nothing_and_its_parameters_leave_the_optimizer(block):
    model = add(resnet(), X, depth=True, residual="tied")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    gc = sn.GarbageCollector(model, X, optimizers=optimizer)
    model(X).square().sum().backward()
    optimizer.step()
    with torch.no_grad():
        model[block].bn2.gate.theta.zero_()
    assert gc.plan().branches == (f"{block}.bn2",)
    before = outputs(model, X)
    collection = gc.collect()
    assert collection.branches == (f"{block}.bn2",)
    for old, new in zip(before, outputs(model, X), strict=True):
        assert relative(new, old) < 1e-12
    assert model[block].conv1.out_channels == 1  # nothing inside is wanted any more
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()} and {id(p) for p in optimizer.state} <= held
    assert sn.features(model)[f"{block}.bn2.1"] == (0, 1)
    assert f"{block}.bn2: this branch is closed" in gc.explain()
    optimizer.zero_grad()
    model(X).square().sum().backward()
    optimizer.step()
    assert gc.collect().branches == ()


def test_a_branch_that_is_a_module_computes_nothing_and_is_left_out_of_the_plain_model():
    model = add(nn.Sequential(nn.Linear(4, 6), Whole(6), nn.Linear(6, 2)), data(5, 4), depth=True)
    gc = sn.GarbageCollector(model, data(5, 4))
    with torch.no_grad():
        model[1].branch.gate.theta.fill_(-1)
    before = model(data(5, 4))
    plain = sn.fold_filters(model)
    gc.collect()
    assert relative(model(data(5, 4)), before) < 1e-13
    assert sum(p.numel() for p in model[1].parameters()) == 1
    for small in (plain, sn.fold_filters(model)):
        assert relative(small(data(5, 4)), before) < 1e-13
        assert sum(p.numel() for p in small[1].parameters()) == 0
        assert all(type(m).__module__.split(".")[0] in ("torch", "test_residual") for m in small.modules())


def test_a_live_gate_is_folded_as_a_product():
    model = add(nn.Sequential(nn.Linear(4, 6), Whole(6), nn.Linear(6, 2)), data(5, 4), depth=True, init=1.0)
    with torch.no_grad():
        model[1].branch.gate.theta.fill_(0.5)
    assert relative(sn.fold_filters(model)(data(5, 4)), model(data(5, 4))) < 1e-13


def test_training_on_with_a_closed_branch_is_the_same_with_and_without_collection():
    import copy

    model = add(resnet(), X, depth=True)
    with torch.no_grad():
        model[4].bn2.gate.theta.zero_()
    twin = copy.deepcopy(model)
    losses = []
    for m, collects in ((model, True), (twin, False)):
        optimizer = torch.optim.Adam(m.parameters(), lr=1e-3)
        gc = sn.GarbageCollector(m, X, optimizers=optimizer)
        found = []
        for _ in range(20):
            loss = m(X).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if collects:
                gc.collect()
            found.append(float(loss.detach()))
        losses.append(found)
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


class Projected(nn.Module):
    """The branch changes the number of channels, so nothing can stand in for it."""

    def __init__(self):
        super().__init__()
        self.skip, self.branch = nn.Linear(4, 8), nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))

    def forward(self, x):
        return self.skip(x) + self.branch(x)


def test_a_closed_branch_that_changes_its_inputs_shape_stays():
    model, x = nn.Sequential(nn.Linear(4, 4), Projected()), torch.randn(3, 4)
    sn.add_filters(model, x, depth=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gc = sn.GarbageCollector(model, x, optimizers=optimizer)
    gated = [m for m in model.modules() if isinstance(m, Gated)]
    assert gated
    with torch.no_grad():
        for m in gated:
            m.gate.theta.fill_(-1)
    before, branches = model(x), [m[0] for m in gated]
    assert not gc.collect().branches
    assert not gc.plan().branches
    assert branches == [m[0] for m in gated]
    torch.testing.assert_close(model(x), before)
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {id(p) for p in model.parameters()}
    torch.testing.assert_close(sn.fold_filters(model)(x), before)


class Trunk(nn.Module):
    """A residual block, and a layer behind the trunk."""

    def __init__(self):
        super().__init__()
        self.block, self.wide, self.out = Whole(6), sn.FilteredLinear(6, 12), nn.Linear(12, 2)

    def forward(self, x):
        return self.out(self.wide(self.block(x)))


def test_a_refused_collection_brings_the_branch_back():
    import copy

    model, x = Trunk(), torch.randn(5, 6)
    sn.add_filters(model, x, depth=True)
    ema = copy.deepcopy(model)
    named = {k: v.detach().clone() for k, v in model.named_parameters()}
    optimizer = torch.optim.Adam(
        [{"params": model.block.parameters()}, {"params": [model.wide._parameters["weight"], model.wide.theta]}]
    )
    gc = sn.GarbageCollector(model, x, optimizers=optimizer, min_dead=0.0, follow=[ema, named], follow_dead="drop")
    model(x).sum().backward()
    optimizer.step()
    with torch.no_grad():
        model.block.branch.gate.theta.zero_()
        model.wide.theta[:4] = 0

    def everything():
        held = [[id(p) for p in group["params"]] for group in optimizer.param_groups]
        models = [[(k, id(p)) for k, p in m.named_parameters()] for m in (model, ema)]
        values = [v.tolist() for v in (*model.parameters(), *ema.parameters(), *named.values())]
        return held, set(map(id, optimizer.state)), models, list(named), values

    explained = gc.explain()
    optimizer.state[model.wide.theta]["odd"] = torch.zeros(5)  # what cannot follow
    before = everything()
    for refused in (gc.collect, gc.step):
        with pytest.raises(sn.ShrinkError, match="odd"):
            refused()
        assert everything() == before and gc.explain() == explained
        gc._pace.seen = {}
    del optimizer.state[model.wide.theta]["odd"]
    model(x).sum().backward()
    optimizer.step()
    with torch.no_grad():
        model.wide.theta[:4] = 1
    assert gc.collect().branches == ("block.branch",)
    assert list(named) == [k for k, _ in model.named_parameters()] == [k for k, _ in ema.named_parameters()]


def test_a_refused_collection_is_not_tried_again_at_the_next_step():
    model, x = Trunk(), torch.randn(5, 6)
    sn.add_filters(model, x, depth=True)
    optimizer = torch.optim.Adam(model.parameters())
    gc = sn.GarbageCollector(model, x, optimizers=optimizer, min_dead=0.0)
    optimizer.state[model.wide.theta]["odd"] = torch.zeros(5)
    with torch.no_grad():
        model.block.branch.gate.theta.zero_()
        model.block.branch[0][0].theta[:3] = 0
        model.wide.theta[:4] = 0
    with pytest.raises(sn.ShrinkError):
        gc.step()
    assert gc.step() is None
