"""A refusal is one line: no log, no print of the graph in front of it, and the user's line in it."""

import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn

import shrinknets_fast as sn


class Decides(nn.Module):
    def __init__(self, layers=20):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(layers))

    def forward(self, x):
        for layer in self.layers:
            x = torch.relu(layer(x))
        if not torch.isfinite(x).all():
            x = x.clamp(-1, 1)
        return x


class Speaks(nn.Sequential):
    def forward(self, x):
        print("to stdout")
        print("to stderr", file=sys.stderr)
        warnings.warn("a warning of the user's", stacklevel=1)
        return super().forward(x)


def test_a_decision_on_values_is_one_line(capfd):
    with pytest.raises(
        sn.ShrinkError, match=r"Decides cannot be traced in train mode: .*isfinite\(x\)\.all\(\).*torch\.where"
    ) as raised:
        sn.add_filters(Decides(), torch.randn(2, 8))
    assert "\n" not in str(raised.value)
    assert capfd.readouterr() == ("", "")


def test_nothing_is_printed_in_a_process_of_its_own():
    code = (
        "import test_blame, torch, shrinknets_fast as sn\n"
        "try: sn.GarbageCollector(test_blame.Decides(), torch.randn(2, 8))\n"
        "except sn.ShrinkError as error: print(error)"
    )
    folder = __file__.rpartition("/")[0]
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, check=True)
    assert len(result.stdout.splitlines()) == 1 and result.stderr == ""


def test_what_the_user_s_forward_says_is_heard(capfd):
    with pytest.warns(UserWarning, match="a warning of the user's"):
        sn.add_filters(Speaks(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2)), torch.randn(2, 8))
    out, err = capfd.readouterr()
    assert "to stdout" in out and "to stderr" in err


def test_sharded_parameters_are_named(tmp_path):
    code = f"""
import torch, torch.distributed as dist, shrinknets_fast as sn
from torch import nn
dist.init_process_group("gloo", init_method="file://{tmp_path}/store", rank=0, world_size=1)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
x, mesh = torch.randn(8, 10), init_device_mesh("cpu", (1,))
model = sn.add_filters(nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 3)), x)
gc, expected = sn.GarbageCollector(model, x), model(x)
fully_shard(model, mesh=mesh)
made = [lambda name=name: getattr(sn, name)(model, x) for name in ("add_filters", "coverage")]
for call in (*made, gc.step, gc.plan, lambda: model[0].weight):
    try: call()
    except sn.ShrinkError as error: print(error)
torch.testing.assert_close(model(x), expected)  # it trains all the same
model(x).sum().backward()
dist.destroy_process_group()
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = result.stdout.splitlines()
    assert len(lines) == 5
    assert all("0.weight is a DTensor" in line and "filters added before" in line for line in lines[:2])
    assert all("was replaced since the model was traced" in line for line in lines[2:4])
    assert "FilteredLinear.weight is sharded, so it cannot be read with its filter in it" in lines[4]
