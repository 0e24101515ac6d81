"""--amp, --compile and --tensorboard."""

import builtins
import json
import sys

import pytest
import torch

from shrinknets_fast.__main__ import main

QUICK = ["--width", "24", "--epochs", "2", "--batch-size", "64", "--lr", "1e-2", "--lam", "2e-2"]


def train(folder, *options):
    assert main(["train", *QUICK, *options, "--out", str(folder)]) == 0
    return json.loads((folder / "summary.json").read_text()), torch.load(folder / "last.pt", weights_only=True)


@pytest.mark.parametrize(("options", "dtype"), [(["--amp"], torch.bfloat16), (["--amp", "fp16"], torch.float16)])
def test_amp_computes_in_the_half_type_and_keeps_the_weights(options, dtype, tmp_path, monkeypatch):
    seen, real_forward = set(), torch.nn.Sequential.forward

    def forward(self, x):
        out = real_forward(self, x)
        seen.add((self.training, out.dtype))
        return out

    monkeypatch.setattr(torch.nn.Sequential, "forward", forward)
    summary, last = train(tmp_path, *options)
    assert {(True, dtype), (False, torch.float32)} <= seen
    assert all(value.dtype == torch.float32 for value in last["model"].values())
    assert summary["test_accuracy"] > 0.7 and summary["collections"] > 0
    assert bool(last["scaler"]) == (dtype == torch.float16)


def test_a_resumed_half_run_is_the_same(tmp_path):
    from training_runs import assert_same_end

    train(tmp_path / "a", "--amp", "fp16", "--epochs", "3")
    train(tmp_path / "b", "--amp", "fp16")
    train(tmp_path / "b", "--resume", "--amp", "fp16", "--epochs", "3")
    assert_same_end(tmp_path / "a", tmp_path / "b")


def test_compile_takes_the_compiled_forward(tmp_path, monkeypatch):
    """torch's eager backend: dynamo's part without the seconds of a C++ compiler for each collection."""
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **options: real(model, backend="eager", **options))
    torch._dynamo.utils.counters.clear()
    summary, last = train(tmp_path / "a", "--compile")
    plain, expected = train(tmp_path / "b")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert summary["features"] == plain["features"] and summary["collections"] > 0
    assert summary["test_loss"] == pytest.approx(plain["test_loss"], rel=1e-4)
    assert (
        summary["collections"] < plain["collections"]
    )  # few graphs: the dead wait in last.pt, and have left at the end
    assert list(last["model"]) == list(expected["model"])


def test_a_compiler_that_fails_is_one_line(tmp_path, monkeypatch, capsys):
    def broken(graph, inputs):
        raise RuntimeError("no C++ compiler")

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **options: real(model, backend=broken, **options))
    assert main(["train", *QUICK, "--compile", "--out", str(tmp_path)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert "--compile: torch.compile failed" in line and "no C++ compiler" in line


def events(folder):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard"
    )
    found = accumulator.EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    found.Reload()
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_tensorboard_has_each_scalar_once_through_a_resume_and_a_new_run(tmp_path):
    summary, last = train(tmp_path, "--tensorboard")
    found = events(tmp_path)
    assert [step for step, _ in found["loss/train"]] == list(range(1, 47))
    assert found["accuracy/test"][-1] == (46, pytest.approx(summary["test_accuracy"]))
    assert [step for step, _ in found["features/hidden1"]] == [23, 46]
    assert found["parameters"][-1][1] <= found["parameters"][0][1] <= summary["parameters_before"]
    assert {"loss/test", "penalty", "features/hidden2"} <= found.keys()
    train(tmp_path, "--resume", "--epochs", "3")  # the flag is the run's
    found = events(tmp_path)
    assert [step for step, _ in found["loss/train"]] == list(range(1, 70))
    train(tmp_path, "--tensorboard", "--epochs", "1")
    assert [step for step, _ in events(tmp_path)["loss/train"]] == list(range(1, 24))


def test_tensorboard_not_installed(tmp_path, monkeypatch, capsys):
    real = builtins.__import__

    def refuse(name, *args, **options):
        if name.partition(".")[0] == "tensorboard":
            raise ModuleNotFoundError("No module named 'tensorboard'")
        return real(name, *args, **options)

    for name in [name for name in sys.modules if name.startswith(("tensorboard", "torch.utils.tensorboard"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", refuse)
    out = tmp_path / "run"
    assert main(["train", *QUICK, "--tensorboard", "--out", str(out)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--tensorboard needs tensorboard" in line and "pip install tensorboard" in line and not out.exists()
