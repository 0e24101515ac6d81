"""What a user's type checker sees of the package."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import shrinknets_fast

ROOT = Path(__file__).parents[1]

# Each name of the package, and what a checker takes it for.
RIGHT = """\
from collections.abc import Callable
from typing import Any, assert_type

import torch
from torch import nn
from torch.nn.modules.module import _IncompatibleKeys
from torch.utils.hooks import RemovableHandle

import shrinknets_fast as sf
from shrinknets_fast.folded import Init
from shrinknets_fast.graph.op import Op
from shrinknets_fast.graph.plan import Plan
from shrinknets_fast.graph.value import Value


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = sf.FilteredLinear(4, 8, activation="relu")
        self.second = nn.Linear(8, 2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.second(self.first(x))
        return out


x = torch.randn(2, 4)
model = sf.add_filters(Net(), x, exclude=["second"], residual="tied", depth=True, init="uniform")
assert_type(model, Net)  # not any module, but the one that it was given
assert_type(sf.add_filters(nn.Sequential(), (x,), example_kwargs={"mask": None}), nn.Sequential)

assert_type(sf.__version__, str)
assert_type(model.first, sf.FilteredLinear)
assert_type(model.first(x), torch.Tensor)
assert_type(model.first.weight, torch.Tensor)
assert_type(model.first.bias, torch.Tensor)
assert_type(model.first.theta, nn.Parameter)
assert_type(model.first.alive, torch.Tensor)
assert_type(model.first.init, Init)
model.first.path = "epilogue"
model.first.path = None
assert_type(sf.Filter(8, dim=-1, theta=model.first.theta)(x), torch.Tensor)

conv1 = sf.FilteredConv1d(3, 8, 3, 2, "same", bias=False, padding_mode="circular", device="cpu")
conv2 = sf.FilteredConv2d(3, 8, (3, 1), padding=(1, 0), activation="relu", dtype=torch.float64)
conv3 = sf.FilteredConv3d(3, 8, kernel_size=3, padding="valid")
assert_type(conv1(x), torch.Tensor)
assert_type(conv2(x), torch.Tensor)
assert_type(conv3(x), torch.Tensor)
assert_type(conv2.weight, torch.Tensor)
assert_type(conv2.bias, torch.Tensor | None)  # as torch has it
norm1, norm2 = sf.FilteredBatchNorm1d(8, 1e-3), sf.FilteredBatchNorm2d(8, affine=False)
norm3 = sf.FilteredBatchNorm3d(8, momentum=None, device=torch.device("cpu"))
synced = sf.FilteredSyncBatchNorm(8, momentum=None, process_group=None, theta=norm3.theta)
assert_type(sf.FilteredSyncBatchNorm.convert_sync_batchnorm(model), nn.Module)
layer_norm = sf.FilteredLayerNorm(8, bias=False, theta=norm3.theta)
rms_norm = sf.FilteredRMSNorm(8, eps=1e-6, init=1.0)
group_norm = sf.FilteredGroupNorm(2, 8, affine=False)
instance_norms = [sf.FilteredInstanceNorm1d(8), sf.FilteredInstanceNorm2d(8), sf.FilteredInstanceNorm3d(8, affine=True)]
assert_type(layer_norm(x), torch.Tensor)
assert_type(rms_norm(x), torch.Tensor)
assert_type(group_norm(x), torch.Tensor)
assert_type(instance_norms[0](x), torch.Tensor)
lstm, gru = sf.FilteredLSTM(8, 16, 2, batch_first=True), sf.FilteredGRU(8, 16, bidirectional=True)
lstm(x), gru(x)
assert_type(norm1(x), torch.Tensor)
assert_type(norm2(x), torch.Tensor)
assert_type(norm3(x), torch.Tensor)
assert_type(norm1.weight, torch.Tensor)
assert_type(norm1.bias, torch.Tensor | None)

w = torch.ones(2, 4)
assert_type(sf.functional.filter(x, model.first.theta, 1), torch.Tensor)
assert_type(sf.functional.filtered_linear(x, w, None, w[0], activation="relu", path="fold"), torch.Tensor)
assert_type(sf.functional.filtered_conv1d(x, w, None, w[0], padding="same"), torch.Tensor)
assert_type(sf.functional.filtered_conv2d(x, w, None, w[0], stride=(1, 2)), torch.Tensor)
assert_type(sf.functional.filtered_conv3d(x, w, None, w[0]), torch.Tensor)
assert_type(sf.functional.filtered_batch_norm(x, None, None, None, None, w[0], training=True), torch.Tensor)

assert_type(sf.penalty(model), torch.Tensor)
assert_type(sf.features(model), dict[str, tuple[int, int]])
groups = sf.param_groups(model, lr=1e-3, filter_lr=1e-2)
assert_type(groups, list[dict[str, Any]])  # what torch.optim takes
optimizer = torch.optim.AdamW(groups)

ema = {name: tensor.clone() for name, tensor in model.state_dict().items()}
gc = sf.GarbageCollector(model, x, optimizers=optimizer, align=8, seed=0, follow=ema, follow_dead="drop")
sf.GarbageCollector(model, [x], optimizers=[optimizer], follow=[Net(), ema, list(model.parameters())])
assert_type(gc, sf.GarbageCollector)
assert_type(gc.collect(), sf.Collection)
assert_type(gc.plan(), Plan)
assert_type(gc.plan().removed, dict[str, int])
assert_type(gc.explain(), str)
assert_type(gc.trim(), int)
assert_type(gc.on_removed(lambda hub, kept: print(hub.upper(), kept.numel())), RemovableHandle)
assert_type(gc.state_dict()["steps"], int)
gc.load_state_dict(gc.state_dict())
if (collection := gc.step()) is not None:
    assert_type(collection.removed, dict[str, int])
    assert_type(collection.bytes_moved, int)
    assert_type(collection.branches, tuple[str, ...])

proximal = sf.ProximalL1(optimizer, model, 1e-3)
assert_type(proximal.state_dict(), dict[str, float])

assert_type(sf.coverage(model, x), sf.Coverage)
assert_type(sf.coverage(model, x).share, float)
assert_type(sf.coverage(model, x).parameters, dict[str, tuple[int, float]])
assert_type(sf.mark_dead(model, x), dict[str, int])
assert_type(sf.fold_filters(model), nn.Module)
assert_type(sf.load_state_dict(model, model.state_dict()), _IncompatibleKeys)
with sf.unfolded():
    nn.init.zeros_(model.first.weight)
try:
    gc.collect()
except sf.ShrinkError as error:
    assert_type(error, sf.ShrinkError)


@sf.register_rule(torch.ops.aten.relu.default)
def relu(op: Op) -> Value:
    (value,) = op.inputs
    return op.output(op.axes(value), lambda zeros: zeros.of(value))


kept: Callable[[Op], Value] = relu
budget: sf.Budget = sf.Budget(model, x, parameters=100, steps=10)
lam: float = budget.lam + sf.LambdaSchedule(1e-3, steps=10).lam
sf.resize(model, {"0.weight": (2, 4)}, prefix="model.")
from_scikit_learn: sf.sklearn.ShrinkRegressor = sf.sklearn.ShrinkRegressor((8,), lam=1e-3)
scalars: dict[str, float] = sf.integrations.tensorboard.scalars(model)
"""

# What a checker refuses, and how.
WRONG = """\
import torch
from torch import nn

import shrinknets_fast as sf
from shrinknets_fast.graph.op import Op

x, model = torch.ones(2, 4), nn.Linear(4, 2)
sf.GarbageCollector(model, x, align="8")  # arg-type
sf.GarbageCollector(model, x, follow_dead="never")  # arg-type
sf.GarbageCollector(model, x, alignment=8)  # call-arg
sf.add_filters(model, x, residual="outer")  # arg-type
sf.add_filters(model, x, init="normal")  # arg-type
sf.FilteredLinear(4, 2, activation="gelu")  # arg-type
sf.FilteredLinear(4, 2).path = "fast"  # assignment
sf.FilteredConv2d(3, 8, 3, strides=2)  # call-arg
sf.FilteredBatchNorm1d(8, momentum="0.1")  # arg-type
sf.FilteredSyncBatchNorm(8, momentum="0.1")  # arg-type
sf.functional.filtered_linear(x, x, None, x, path="fast")  # arg-type
sf.functional.filtered_conv1d(x, x, None, x, padding="full")  # arg-type
sf.penalty(model) + "1"  # operator
sf.penalty([model])  # arg-type
sf.ProximalL1(model, model, 0.1)  # arg-type
sf.load_state_dict(model, "checkpoint.pt")  # arg-type
sf.features(model)["0"].alive  # attr-defined


@sf.register_rule("aten::relu")  # arg-type
def relu(op: Op) -> None: ...


@sf.register_rule(torch.ops.aten.relu.default)  # type-var
def gelu(op: Op) -> str:
    return "zero"
"""


def test_a_users_type_checker_sees_types(tmp_path):
    pytest.importorskip("mypy", reason="mypy is not installed; pip install 'shrinknets_fast[dev]' has it")
    assert [name for name in shrinknets_fast.__all__ if not re.search(rf"\bsf\.{name}\b", RIGHT)] == []
    right, wrong = tmp_path / "right.py", tmp_path / "wrong.py"
    right.write_text(RIGHT)
    wrong.write_text(WRONG)
    run = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), str(right), str(wrong)]
    found = subprocess.run(run, cwd=ROOT, env={**os.environ, "MYPYPATH": str(ROOT)}, capture_output=True, text=True)
    print(found.stdout)
    errors = re.findall(r"(\w+)\.py:(\d+): error: .* \[([\w-]+)\]", found.stdout)
    assert [error for error in errors if error[0] != "wrong"] == [], found.stderr
    expected = re.findall(r"^.*?(?:# ([\w-]+))?$", WRONG, re.M)
    assert {(int(line), code) for _, line, code in errors} == {
        (line, code) for line, code in enumerate(expected, 1) if code
    }
