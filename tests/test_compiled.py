"""Compiled models, losses and steps: the gradients of the same run uncompiled, and few graphs."""

import warnings

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

import shrinknets_fast as sn
from shrinknets_fast.compiled import GUARDS_SIZES
from shrinknets_fast.pace import rung

WIDTH, STEPS = 40, 20


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(6, WIDTH), sn.FilteredBatchNorm1d(WIDTH, init=1.0)
        self.second, self.last = sn.FilteredLinear(WIDTH, WIDTH, init=1.0), nn.Linear(WIDTH, 3)

    def forward(self, x):
        return self.last(self.second(self.norm(self.first(x)).tanh()).relu())


@pytest.fixture(autouse=True)
def fresh():
    torch.compiler.reset()
    with torch._dynamo.config.patch(
        recompile_limit=8
    ):  # torch's own: other packages set another when they are imported
        config = torch._dynamo.config.get_config_copy()
        yield
        assert torch._dynamo.config.get_config_copy() == config
    torch.compiler.reset()


def graphs():
    return counters["stats"]["unique_graphs"]


def loss_of(forward, model, x):
    return forward(x).square().mean() + 1e-2 * sn.penalty(model)


@torch.no_grad()
def kill_towards(model, share, uneven):
    """Of each filter so many die that this share of the original width lives; uneven: the first one begins later."""
    for k, theta in enumerate(sn.filters.thetas(model).values()):
        wanted = min(1.0, 1.8 * share) if uneven and k == 0 and share > 0.051 else share
        alive = torch.nonzero(theta > 0).flatten()
        theta[alive[: max(len(alive) - round(wanted * WIDTH), 0)]] = 0


def trained(way, uneven=False, steps=STEPS, batches=None, **options):
    """Until 5% live. Returns ([loss and gradients] of each step, collections, graphs)."""
    torch.manual_seed(0)
    model = Network().double()
    x = torch.randn(9, 6, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    before, found, collections = graphs(), [], 0
    gc, step = way(model, x, optimizer, options)
    for k in range(steps + 1):  # once more after the last collection
        kill_towards(model, max(1 - 0.95 * (k + 1) / steps, 0.05), uneven)
        loss = step(x)
        found.append([loss.detach(), *(p.grad.clone() for p in model.parameters())])
        collections += gc.step() is not None
    assert sum(alive for alive, _ in sn.features(model).values()) == 4
    return found, collections, graphs() - before


def stepping(forward, model, optimizer, step=None):
    def run(x):
        optimizer.zero_grad()
        loss = loss_of(forward, model, x)
        loss.backward()
        (step or optimizer.step)()
        return loss

    return run


def plain(model, x, optimizer, options):
    return sn.GarbageCollector(model, x, optimizers=optimizer, **options), stepping(model, model, optimizer)


def before(model, x, optimizer, options):
    compiled = torch.compile(model, **BACKEND)
    return sn.GarbageCollector(compiled, x, optimizers=optimizer, **options), stepping(compiled, model, optimizer)


def after(model, x, optimizer, options):
    gc = sn.GarbageCollector(model, x, optimizers=optimizer, **options)
    return gc, stepping(torch.compile(model, backend="eager", fullgraph=True), model, optimizer)


def by_the_module(model, x, optimizer, options):
    gc = sn.GarbageCollector(model, x, optimizers=optimizer, **options)
    model.compile(**BACKEND)
    return gc, stepping(model, model, optimizer)


def held_by_another(model, x, optimizer, options):
    gc = sn.GarbageCollector(model, x, optimizers=optimizer, **options)
    whole = nn.Sequential(model, nn.Identity())
    return gc, stepping(torch.compile(whole, backend="eager", fullgraph=True), model, optimizer)


def loss_function(model, x, optimizer, options):
    gc = sn.GarbageCollector(model, x, optimizers=optimizer, **options)
    loss = torch.compile(lambda x: loss_of(model, model, x), **BACKEND)

    def run(x):
        optimizer.zero_grad()
        found = loss(x)
        found.backward()
        optimizer.step()
        return found

    return gc, run


def optimizer_step(model, x, optimizer, options):
    gc = sn.GarbageCollector(model, x, optimizers=optimizer, **options)
    return gc, stepping(model, model, optimizer, torch.compile(optimizer.step, backend="aot_eager"))


def whole_step(model, x, optimizer, options):
    gc = sn.GarbageCollector(model, x, optimizers=optimizer, **options)
    return gc, torch.compile(stepping(model, model, optimizer), backend="aot_eager")


BACKEND = {"backend": "aot_eager", "fullgraph": True}
KNOWN = [before, after, by_the_module, held_by_another]
TOLD = [loss_function]  # nobody can see what a function computes with


@pytest.fixture(scope="module")
def expected():
    return {uneven: trained(plain, uneven, max_graphs=6) for uneven in (False, True)}


def assert_same(found, expected):
    for step, (a, b) in enumerate(zip(found, expected, strict=True)):
        for mine, theirs in zip(a, b, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-13, msg=lambda m, k=step: f"step {k}: {m}")


@pytest.mark.parametrize(
    ("way", "uneven"), [*((way, False) for way in KNOWN), (before, True), *((way, False) for way in TOLD)]
)
def test_at_most_six_graphs_until_95_percent_have_left(way, uneven, expected):
    found, collections, count = trained(way, uneven, **({} if way in KNOWN else {"max_graphs": 6}))
    assert collections == expected[uneven][1] and 3 <= collections <= 5
    assert count == collections + 1 <= 6
    assert_same(found, expected[uneven][0])


@pytest.mark.parametrize(("way", "each"), [(optimizer_step, 1), pytest.param(whole_step, 2, marks=pytest.mark.slow)])
def test_compiled_steps_of_an_optimizer(way, each, expected):
    """each: graphs for each size."""
    found, collections, count = trained(way, max_graphs=6)
    assert collections == expected[False][1]
    assert each * (collections + 1) <= count <= each * (collections + 1) + 1  # one that makes the state
    assert_same(found, expected[False][0])


@pytest.mark.slow
@pytest.mark.parametrize("way", [before, optimizer_step])
def test_with_inductor(way, expected, monkeypatch):
    """Whose code checks sizes, and is wrong where it does not."""
    monkeypatch.setitem(BACKEND, "backend", "inductor")
    assert_same(trained(way, max_graphs=6)[0], expected[False][0])


def test_the_ladder():
    for count in (2, 6, 9):
        assert (1 - rung(count)) ** (count - 1) == pytest.approx(0.05)
    for wrong in (1, 0, 2.5, True):
        with pytest.raises(sn.ShrinkError, match=f"max_graphs is {wrong!r}, expected an integer of at least 2"):
            sn.GarbageCollector(Network(), torch.randn(9, 6), max_graphs=wrong)


def collections_of_one(model, x, gc, forward, count):
    """``count`` of them, a feature each, with a forward after each."""
    for _ in range(count):
        with torch.no_grad():
            model.second.theta[0] = 0
        assert gc.collect().removed == {"second": 1}
        forward(x)


def begun(compile_first, around=lambda model: model):
    model, x = Network().double(), torch.randn(9, 6, dtype=torch.float64)
    forward = torch.compile(around(model), backend="eager", fullgraph=True)
    gc = sn.GarbageCollector(forward if compile_first else model, x)
    forward(x)
    return model, x, gc, forward


def test_a_compiled_model_never_reaches_dynamo_s_limit():
    before = graphs()
    collections_of_one(*begun(True), 9)  # fullgraph would raise
    assert graphs() - before == 10


@pytest.mark.skipif(not GUARDS_SIZES, reason="needs a torch whose dynamo guards on sizes: 2.13 or newer")
def test_what_cannot_be_seen_is_warned_of_before_the_limit():
    parts = begun(False, lambda model: lambda x: model(x).square())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        collections_of_one(*parts, 5)
    with pytest.warns(UserWarning, match=r"after each of 5 collections .* recompile_limit=8 .* max_graphs=6"):
        collections_of_one(*parts, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        collections_of_one(*parts, 1)


@pytest.mark.skipif(not GUARDS_SIZES, reason="needs a torch whose dynamo guards on sizes: 2.13 or newer")
def test_what_else_is_compiled_stays_compiled():
    other, x = torch.compile(nn.Linear(3, 3), backend="eager"), torch.randn(2, 3)
    parts = begun(True)
    other(x)
    collections_of_one(*parts, 2)
    before = graphs()
    other(x)
    assert graphs() == before


def test_what_compiles_nothing_does_not_wait():
    model, x = Network().double(), torch.randn(9, 6, dtype=torch.float64)
    gc = sn.GarbageCollector(model, x)
    torch.compile(nn.Linear(3, 3), backend="eager")(torch.randn(2, 3))  # another model
    with torch.no_grad():
        model.second.theta[:4] = 0
    assert gc.step().removed == {"second": 4}


def test_a_collection_inside_a_compiled_step():
    model, x = Network().double(), torch.randn(9, 6, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gc, found = sn.GarbageCollector(model, x, optimizers=optimizer), []

    @torch.compile(backend="eager")
    def step(x):
        model(x).square().mean().backward()
        found.append(gc.step())

    step(x)
    with torch.no_grad():
        model.second.theta[:4] = 0
    model.zero_grad()
    step(x)
    assert found[0] is None and found[1].removed == {"second": 4}


@pytest.mark.skipif(not GUARDS_SIZES, reason="needs a torch whose dynamo guards on sizes: 2.13 or newer")
def test_sizes_as_symbols_are_compiled_once():
    model, x = Network().double(), torch.randn(9, 6, dtype=torch.float64)
    symbols = torch._dynamo.config.patch(
        force_parameter_static_shapes=False, force_nn_module_property_static_shapes=False
    )
    forward = symbols(torch.compile(model, backend="aot_eager"))
    gc, before = sn.GarbageCollector(model, x), graphs()
    forward(x).sum().backward()
    for _ in range(9):
        with torch.no_grad():
            model.second.theta[:3] = 0
        gc.collect()
        model.zero_grad()
        forward(x).sum().backward()
        mine = [p.grad.clone() for p in model.parameters()]
        model.zero_grad()
        model(x).sum().backward()
        for a, p in zip(mine, model.parameters(), strict=True):
            torch.testing.assert_close(a, p.grad, rtol=1e-11, atol=1e-13)
    assert graphs() - before <= 3


def test_blocks_that_are_compiled_one_by_one():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = sn.FilteredLinear(6, 8), nn.Linear(8, 6)

        def forward(self, x):
            return x + self.down(self.up(x).relu())

    for count in (8, 9):
        model = nn.Sequential(*(Block() for _ in range(count)))
        for block in model:
            block.compile(backend="eager")
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            sn.GarbageCollector(model, torch.randn(2, 6))
        told = [str(w.message) for w in seen if "one by one" in str(w.message)]
        assert len(told) == (count == 9), told
