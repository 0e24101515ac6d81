"""Users' own ops and modules, taught with a rule."""

import pytest
import torch
from networks import kill, outputs, relative
from torch import nn

import shrinknets_fast as sn
from shrinknets_fast.graph import order
from shrinknets_fast.graph.rules import registry


@pytest.fixture(autouse=True)
def rules_are_put_back():
    before = dict(registry.RULES), dict(registry.MODULES)
    yield
    for table, content in zip((registry.RULES, registry.MODULES), before, strict=True):
        table.clear()
        table.update(content)


@torch.library.custom_op("sn_test::scale_rows", mutates_args=())
def scale_rows(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return x * w


scale_rows.register_fake(lambda x, w: torch.empty_like(x))


class Rows(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.w = nn.Parameter(torch.rand(n, dtype=torch.float64))

    def forward(self, x):
        return torch.ops.sn_test.scale_rows(x, self.w)


def model_with(layer):
    return nn.Sequential(sn.FilteredLinear(5, 8), layer, nn.Linear(8, 2)).double()


X = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_an_op_without_a_rule_keeps_what_reaches_it_and_says_so_once():
    model = model_with(Rows(8))
    kill(model)
    with pytest.warns(UserWarning, match="no rule for sn_test.scale_rows") as caught:
        gc = sn.GarbageCollector(model, X)
    assert sum("no rule" in str(w.message) for w in caught) == 1
    assert gc.collect().removed == {}
    assert "sn_test.scale_rows" in gc.explain()


def test_an_op_with_a_rule_lets_it_leave():
    @sn.register_rule(torch.ops.sn_test.scale_rows.default)
    def rule(op):
        x, w = op["x"], op["w"]
        op.unify(op.axis(x, -1), op.axis(w, 0))
        return op.output([op.axis(x, d) for d in range(x.ndim)], lambda zeros: [zeros(x, d) for d in range(x.ndim)])

    model = model_with(Rows(8))
    kill(model)
    before = outputs(model, X)
    assert sn.GarbageCollector(model, X).collect().removed == {"0": 3}
    assert model[1].w.shape == (5,) and relative(outputs(model, X)[0], before[0]) < 1e-13


def test_features_that_no_rule_reads_stay():
    @sn.register_rule(torch.ops.sn_test.scale_rows.default)
    def rule(op):  # says neither that it reads its input nor that it hands it on
        return op.output([None, op.fresh_axis(op.shape[1])])

    model = model_with(Rows(8))
    kill(model)
    gc = sn.GarbageCollector(model, X)
    assert gc.collect().removed == {} and "kept: nothing reads it" in gc.explain()


@torch.library.custom_op("sn_test::backwards", mutates_args=())
def backwards(x: torch.Tensor) -> torch.Tensor:
    return x.flip(-1)


backwards.register_fake(lambda x: torch.empty_like(x))


class Backwards(nn.Module):
    def forward(self, x):
        return torch.ops.sn_test.backwards(x)


def test_an_op_that_puts_features_in_another_order_goes_with_a_fill_too(monkeypatch):
    monkeypatch.setattr(order, "WORTH_BYTES", 0)  # or a network this small would always slide

    @sn.register_rule(torch.ops.sn_test.backwards.default)
    def rule(op):
        x = op["x"]
        turned = op.rearranged(op.axis(x, 1), lambda ids: ids.flip(0))
        return op.output([op.axis(x, 0), turned], lambda zeros: [zeros(x, 0), zeros(x, 1).flip(0)])

    model = nn.Sequential(sn.FilteredLinear(5, 32), Backwards(), nn.Linear(32, 2)).double()
    with torch.no_grad():
        model[0].theta[1] = 0
    before = outputs(model, X)
    assert sn.GarbageCollector(model, X).collect().removed == {"0": 1}
    assert relative(outputs(model, X)[0], before[0]) < 1e-13


class Gain(nn.Module):
    """A user's stateful module; sorting along the batch has no rule of its own."""

    def __init__(self, n):
        super().__init__()
        self.gain = nn.Parameter(torch.rand(n, dtype=torch.float64) + 0.5)
        self.register_buffer("seen", torch.zeros(n, dtype=torch.float64))

    def forward(self, x):
        return torch.sort(x, dim=0).values * self.gain + 0 * self.seen


def test_a_module_type_with_a_rule_is_seen_as_a_whole():
    @sn.register_rule(Gain)
    def rule(op):
        (x,) = op.inputs
        for name in ("gain", "seen"):
            op.unify(op.axis(x, 1), op.axis(op.parameter(name), 0))
        return op.output([op.axis(x, d) for d in range(x.ndim)], lambda zeros: [zeros(x, d) for d in range(x.ndim)])

    model = model_with(nn.Sequential(nn.Identity(), Gain(8)))
    kill(model)
    before = outputs(model, X)
    gc = sn.GarbageCollector(model, X)
    assert gc.collect().removed == {"0": 3}
    assert model[1][1].gain.shape == model[1][1].seen.shape == (5,)
    assert relative(outputs(model, X)[0], before[0]) < 1e-13


@pytest.mark.filterwarnings("ignore:no rule")
def test_the_module_without_its_rule_keeps_them():
    model = model_with(Gain(8))
    kill(model)
    assert sn.GarbageCollector(model, X).collect().removed == {}


def fails(message):
    raise KeyError(message)


WRONG_RULES = {
    "an axis too few": (lambda op: op.output(op.axes(op["x"])[1:]), "axes of .* for a result of shape"),
    "an axis of another size": (lambda op: op.output([None, op.fresh_axis(3)]), "axes of .* for a result of shape"),
    "a dimension that is not there": (lambda op: op.axis(op["x"], 2), "dimension 2 of a tensor"),
    "an argument that is not there": (lambda op: op["weight"], "no argument 'weight', expected one of x, w"),
    "axes of two sizes": (lambda op: op.unify(op.axis(op["x"], -1), op.fresh_axis(3)), "unify: axes of 8 and 3"),
    "an error of its own": (lambda op: fails("boo"), "KeyError: 'boo'"),
    "axes instead of a value": (
        lambda op: op.axes(op["x"]),
        "it returns a (NoneType|Axis), expected what op.output gives",
    ),
    "words": (lambda op: "x", "it returns a str, expected what op.output gives"),
    "an input": (lambda op: op["x"], "it returns an input, expected what op.output gives"),
}
WRONG_ZEROS = {
    "an error of its own": (lambda zeros: fails("boo"), "KeyError: 'boo'"),
    "a mask of another length": (
        lambda zeros: [None, torch.zeros(5, dtype=torch.bool)],
        r"gives \(5,\) torch.bool for",
    ),
    "a mask too few": (lambda zeros: [None], "gives 1 masks for a result of 2 dimensions"),
    "one mask": (lambda zeros: torch.zeros(8, dtype=torch.bool), "gives 8 masks for a result of 2 dimensions"),
    "a list as mask": (lambda zeros: [None, [True] * 8], "gives list for dimension 1, expected 8 bools"),
    "numbers": (lambda zeros: [None, torch.ones(8)], r"gives \(8,\) torch.float32 for dimension 1, expected 8 bools"),
    "nothing": (lambda zeros: None, "TypeError"),
}


def by_own_rule(op):
    return op.output(op.axes(op["x"]), by_own_rule.zero)


@pytest.mark.parametrize("name", WRONG_RULES)
def test_a_wrong_rule_is_named_with_its_file_and_the_op(name):
    rule, words = WRONG_RULES[name]
    sn.register_rule(torch.ops.sn_test.scale_rows.default)(rule)
    with pytest.raises(
        sn.ShrinkError, match=rf"^the rule <lambda> \(.*test_register_rule.py:\d+\) for 1 \(.*scale_rows\): .*{words}"
    ):
        sn.GarbageCollector(model_with(Rows(8)), X)


@pytest.mark.parametrize("name", WRONG_ZEROS)
def test_a_wrong_zero_function_is_named_too(name):
    by_own_rule.zero, words = WRONG_ZEROS[name]
    sn.register_rule(torch.ops.sn_test.scale_rows.default)(by_own_rule)
    with pytest.raises(
        sn.ShrinkError, match=rf"^the rule by_own_rule \(.*test_register_rule.py:\d+\) for 1 .*: .*{words}"
    ):
        sn.GarbageCollector(model_with(Rows(8)), X).explain()
