"""accelerate's prepare with a collector, and scalars for TensorBoard."""

import subprocess
import sys

import pytest
import torch
from integration_ranks import on_two_processes
from torch import nn

import shrinknets_fast as sn

X = torch.randn(128, 16, generator=torch.Generator().manual_seed(0))
Y = (X[:, :4].sum(1) > 0).long()


def prepared():
    accelerate = pytest.importorskip("accelerate", reason="needs accelerate: pip install accelerate")
    torch.manual_seed(0)
    accelerator = accelerate.Accelerator(cpu=True)
    model = nn.Sequential(nn.Linear(16, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 2))
    sn.add_filters(model, X[:2])
    optimizer = torch.optim.Adam(sn.param_groups(model, lr=1e-3, filter_lr=5e-2))
    return accelerator, *sn.integrations.accelerate.prepare(
        accelerator, model, optimizer, example_inputs=X[:2], lam=2e-2
    )


def train(accelerator, model, optimizer, gc, steps):
    x, y = (data[accelerator.process_index :: accelerator.num_processes] for data in (X, Y))
    for _ in range(steps):
        optimizer.zero_grad()
        accelerator.backward(nn.functional.cross_entropy(model(x), y))
        optimizer.step()
        gc.step()


def size(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("moved", [0, 45])
def test_a_state_is_loaded_at_its_size(tmp_path, moved):
    run = prepared()
    before = size(run[1])
    train(*run, 40)
    assert size(run[1]) < before / 2
    run[0].save_state(tmp_path)
    train(*run, 10)
    fresh = prepared()
    train(*fresh, moved)
    fresh[0].load_state(tmp_path)
    train(*fresh, 10)
    assert size(fresh[1]) == size(run[1]) and torch.equal(fresh[1](X), run[1](X))


@pytest.mark.slow
def test_two_processes_shrink_alike_and_go_on(tmp_path):
    first, second = on_two_processes("accelerate_ddp", tmp_path)
    assert sum(tensor.numel() for tensor in first["straight"].values()) < size(prepared()[1]) / 2
    for found in (first["resumed"], second["straight"], second["resumed"]):
        assert found.keys() == first["straight"].keys()
        assert all(torch.equal(tensor, found[name]) for name, tensor in first["straight"].items())


def test_a_model_is_prepared_once():
    accelerator, model, optimizer, gc = prepared()
    with pytest.raises(sn.ShrinkError, match="prepared already"):
        sn.integrations.accelerate.prepare(accelerator, model, optimizer, example_inputs=X[:2])


def test_scalars():
    model = nn.Sequential(sn.FilteredLinear(4, 8), nn.Linear(8, 2))
    with torch.no_grad():
        model[0].theta[:3] = 0
    assert sn.integrations.tensorboard.scalars(model) == {"features/0": 5.0, "features": 5.0, "parameters": 66.0}
    writer = {}
    writer_like = type(
        "Writer", (), {"add_scalar": lambda self, name, value, step: writer.update({name: (value, step)})}
    )
    sn.integrations.tensorboard.write(writer_like(), model, 7, collections=2)
    assert writer["shrinknets/collections"] == (2.0, 7) and writer["shrinknets/features"] == (5.0, 7)


def test_nothing_is_imported_before_it_is_asked_for():
    code = "import sys, shrinknets_fast; print({'lightning', 'transformers', 'accelerate'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
