"""How training behaves: reproducible, the same with and without removal, on every kind of model."""

import json
import signal

import pytest
import torch

from shrinknets_fast.__main__ import main
from shrinknets_fast.training import loop
from shrinknets_fast.training.progress import Interrupt

QUICK = ["--width", "24", "--epochs", "3", "--batch-size", "64", "--lr", "1e-2", "--lam", "2e-2"]


def run(folder, *options):
    """(summary, epoch rows, last.pt) of a short run."""
    assert main(["train", *QUICK, *options, "--out", str(folder)]) == 0
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    epochs = [row for row in rows if row["kind"] == "epoch"]
    return json.loads((folder / "summary.json").read_text()), epochs, torch.load(folder / "last.pt", weights_only=True)


def without_times(rows):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def test_same_seed_same_run_and_another_seed_another(tmp_path):
    runs = [run(tmp_path / str(k), "--seed", seed) for k, seed in enumerate(("5", "5", "6"))]
    first, second, other = (without_times(epochs) for _, epochs, _ in runs)
    assert first == second
    assert first != other
    models = [last["model"] for _, _, last in runs]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_removal_changes_nothing_but_the_size(tmp_path):
    collected, with_removal, small = run(tmp_path / "a")
    kept, without_removal, large = run(tmp_path / "b", "--no-collect")
    assert collected["collections"] > 0 and kept["collections"] == 0
    assert small["model"]["hidden1.weight"].shape[0] == collected["features"]["hidden1"][0]
    assert large["model"]["hidden1.weight"].shape[0] == 24
    assert collected["features"] == kept["features"]
    assert collected["parameters_after"] == kept["parameters_after"]
    for one, other in zip(with_removal, without_removal, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)


def test_dead_stays_dead_without_removal(tmp_path):
    _, epochs, last = run(tmp_path, "--no-collect", "--weight-decay", "1e-2")
    alive = [sum(alive for alive, _ in row["features"].values()) for row in epochs]
    assert alive == sorted(alive, reverse=True) and alive[-1] < 48
    assert (last["model"]["hidden1.theta"] == 0).any()


def test_sizes_are_aligned(tmp_path):
    summary, _, last = run(tmp_path, "--align", "4")
    assert last["model"]["hidden1.weight"].shape[0] % 4 == 0
    assert summary["features"]["hidden1"][1] == 24


def test_proximal_shrinks_too(tmp_path):
    summary, _, last = run(tmp_path, "--proximal", "--lam", "2e-3")
    assert sum(alive for alive, _ in summary["features"].values()) < 48
    assert summary["test_accuracy"] > 0.5
    assert last["proximal"]["lam"] == 2e-3


def test_lenet5(tmp_path):
    summary, _, _ = run(tmp_path, "--model", "lenet5", "--epochs", "1")
    assert [total for _, total in summary["features"].values()] == [50, 50, 24]
    assert summary["plain_max_abs_diff"] <= 1e-5


def test_a_layer_of_one_unit(tmp_path):
    summary, _, _ = run(tmp_path, "--width", "1", "--lam", "1", "--lr", "1e-1")
    assert summary["features"]["hidden1"][1] == 1


@pytest.mark.parametrize("collect", [[], ["--no-collect"]])
def test_nan_in_theta_stops_training_and_keeps_the_last_good_checkpoint(tmp_path, capsys, monkeypatch, collect):
    real_step = loop.Trainer.step

    def step(trainer, *batch):
        if trainer.step_count == 2 * trainer.steps_per_epoch + 3:
            trainer.model.hidden2.theta.data[0] = float("nan")
        return real_step(trainer, *batch)

    monkeypatch.setattr(loop.Trainer, "step", step)
    out = tmp_path / "run"
    assert main(["train", *QUICK, "--epochs", "9", *collect, "--out", str(out)]) == 2
    message = capsys.readouterr().err.rstrip("\n").splitlines()[-1]
    assert message.startswith("python -m shrinknets_fast train: error: training stopped in epoch 3")
    assert "hidden2.theta" in message and "nan" in message and str(out / "last.pt") in message
    assert sorted(path.name for path in out.iterdir()) == ["history.jsonl", "last.pt"]
    last = torch.load(out / "last.pt", weights_only=True)
    assert last["epoch"] == 2
    assert all(value.isfinite().all() for value in last["model"].values())


def test_a_second_ctrl_c_is_not_held_back(ctrl_c):
    with Interrupt() as interrupt:
        assert not interrupt
        signal.raise_signal(signal.SIGINT)
        assert interrupt
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
