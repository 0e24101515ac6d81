"""Bad input is one line with the argument and its value, and status 2; Ctrl-C saves; info tells how it was built."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from shrinknets_fast.__main__ import main

ROOT = Path(__file__).resolve().parents[1]
COMMAND = [sys.executable, "-m", "shrinknets_fast"]

BAD_VALUES = [
    ("--data", "imagenet"),
    ("--model", "vgg"),
    ("--lam", "-1e-3"),
    ("--lam", "-inf"),
    ("--lam", "nan"),
    ("--lam", "inf"),
    ("--lam", "much"),
    ("--lr", "0"),
    ("--lr", "nan"),
    ("--filter-lr", "-1"),
    ("--weight-decay", "inf"),
    ("--width", "0"),
    ("--width", "2.5"),
    ("--width", "-3"),
    ("--depth", "0"),
    ("--epochs", "0"),
    ("--batch-size", "0"),
    ("--every", "0"),
    ("--align", "0"),
    ("--seed", "-1"),
    ("--save-every", "0"),
    ("--amp", "int8"),
    ("--device", "tpu9"),
    ("--device", "meta"),
    ("--device", "cuda:99"),
]


def refused(capsys, *arguments):
    """The one line that ``train`` says before it ends with status 2."""
    try:
        status = main(["train", *arguments])
    except SystemExit as end:
        status = end.code
    assert status == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("python -m shrinknets_fast") and "error: " in line
    return line


@pytest.mark.parametrize("argument, value", BAD_VALUES)
def test_bad_value(argument, value, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = refused(capsys, argument, value)
    assert argument in line and value in line
    assert list(tmp_path.iterdir()) == []


def test_unknown_argument(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "--lambda" in refused(capsys, "--lambda", "1")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/nowhere/run"])
def test_out_that_cannot_be_written(place, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    line = refused(capsys, "--out", place)
    assert f"--out {place}" in line
    assert (tmp_path / "file").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_missing_data_without_a_network(tmp_path, capsys, monkeypatch):
    from torchvision import datasets

    def refuse(*args, **options):
        raise OSError("no network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.mnist, "download_and_extract_archive", refuse)
    line = refused(capsys, "--data", "mnist", "--data-dir", "nowhere")
    assert "--data-dir nowhere" in line and "no network" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "module, package, arguments",
    [
        ("tqdm", "tqdm", []),
        ("matplotlib.figure", "matplotlib", []),
        ("sklearn.datasets", "scikit-learn", []),
        ("torchvision.datasets", "torchvision", ["--data", "mnist"]),
    ],
)
def test_extra_not_installed(module, package, arguments, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    line = refused(capsys, *arguments)
    assert package in line and "shrinknets_fast[demo]" in line
    assert list(tmp_path.iterdir()) == []


def test_too_wide_for_the_memory(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "--width 10000000 with --depth 2 needs" in refused(capsys, "--width", "10000000")
    assert list(tmp_path.iterdir()) == []


def test_bad_input_of_a_process(tmp_path):
    command = [*COMMAND, "train", "--lam", "-1"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert (
        done.stderr
        == "python -m shrinknets_fast train: error: argument --lam: '-1' is not a finite number of at least 0\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_saves_everything(tmp_path):
    out = tmp_path / "run"
    command = [*COMMAND, "train", "--width", "20", "--epochs", "100000", "--out", str(out)]
    with subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            wait_for(out / "history.jsonl", process)
            process.send_signal(signal.SIGINT)
            shown, errors = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "stopped by Ctrl-C" in shown
    summary = json.loads((out / "summary.json").read_text())
    assert summary["interrupted"] is True and 1 <= summary["epochs"] < 100000
    assert torch.load(out / "last.pt", weights_only=True)["epoch"] == summary["epochs"]
    assert sorted(path.name for path in out.iterdir()) == [
        "history.jsonl",
        "history.png",
        "last.pt",
        "plain.pt2",
        "summary.json",
    ]


def wait_for(path, process):
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def test_help_names_every_argument(capsys):
    with pytest.raises(SystemExit) as end:
        main(["train", "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    sizes = "model width depth epochs batch-size every align"
    more = "resume save-every amp compile tensorboard"
    for name in f"data lam lr filter-lr proximal seed device data-dir out no-collect {sizes} {more}".split():
        assert f"--{name}" in text
    assert "130" in text and "torchrun" in text


def test_info(capsys):
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    for word in ("torch", "triton", "python", "library", torch.__version__.split("+")[0]):
        assert word in text


@pytest.mark.slow
def test_demo_finds_a_small_network_for_digits(tmp_path):
    """Median of 5 seeds: at least 0.965 of the test digits right with at least 80% of the hidden units removed."""
    accuracies, shares = [], []
    for seed in range(5):
        out = tmp_path / str(seed)
        assert main(["train", "--data", "digits", "--seed", str(seed), "--out", str(out)]) == 0
        summary = json.loads((out / "summary.json").read_text())
        alive, total = (sum(column) for column in zip(*summary["features"].values(), strict=True))
        accuracies.append(summary["test_accuracy"])
        shares.append(1 - alive / total)
        assert summary["plain_max_abs_diff"] <= 1e-5
    assert sorted(accuracies)[2] >= 0.965
    assert sorted(shares)[2] >= 0.8
