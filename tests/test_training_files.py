"""A short training run on digits leaves the files that the command line promises, and they hold what they say."""

import json
import subprocess
import sys
from argparse import Namespace

import matplotlib.image
import pytest
import torch

import shrinknets_fast as sn
from shrinknets_fast.__main__ import main
from shrinknets_fast.training.data import load
from shrinknets_fast.training.models import build

SIZE = ["--width", "24", "--depth", "2", "--epochs", "4", "--batch-size", "64"]
QUICK = [*SIZE, "--lr", "1e-2", "--lam", "2e-2"]  # so that half of the units die within 4 epochs
FILES = ["history.jsonl", "history.png", "last.pt", "plain.pt2", "summary.json"]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "new" / "folder"
    assert main(["train", *QUICK, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def summary(out):
    return json.loads((out / "summary.json").read_text())


@pytest.fixture(scope="module")
def rows(out):
    return [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def last(out):
    return torch.load(out / "last.pt", weights_only=True)


def test_the_five_files_and_nothing_else(out):
    assert sorted(path.name for path in out.iterdir()) == FILES


def test_the_program_holds_no_data_set(out):
    """An example batch that is a view would carry all 360 test images of 64 floats along."""
    assert (out / "plain.pt2").stat().st_size < 360 * 64 * 4


def test_summary(summary):
    (first, start), (second, same_start) = summary["features"]["hidden1"], summary["features"]["hidden2"]
    assert start == same_start == 24
    assert 0 < first < 24 and 0 < second < 24
    assert summary["parameters_before"] == 65 * 24 + 25 * 24 + 25 * 10
    assert summary["parameters_after"] == 65 * first + (first + 1) * second + (second + 1) * 10
    assert 0.5 < summary["test_accuracy"] <= 1
    assert summary["seconds"] > 0
    assert summary["collections"] > 0
    assert summary["plain_max_abs_diff"] <= 1e-5
    assert summary["arguments"]["lam"] == 2e-2 and summary["arguments"]["filter_lr"] == 1e-2
    assert summary["versions"]["torch"]
    assert summary["interrupted"] is False
    assert {batch: set(ms) for batch, ms in summary["latency_ms"].items()} == {
        "batch 1": {"before", "after"},
        "batch 64": {"before", "after"},
    }


def test_history_has_a_row_per_epoch_and_per_collection(rows, summary):
    epochs = [row for row in rows if row["kind"] == "epoch"]
    collections = [row for row in rows if row["kind"] == "collection"]
    assert len(rows) == len(epochs) + len(collections)
    assert [row["epoch"] for row in epochs] == [1, 2, 3, 4]
    assert epochs[0]["loss"] > epochs[-1]["loss"] > 0
    assert epochs[-1]["test_accuracy"] == summary["test_accuracy"]
    assert len(collections) == summary["collections"]
    removed = sum(count for row in collections for count in row["removed"].values())
    assert removed == sum(total - alive for alive, total in summary["features"].values())
    assert all(row["milliseconds"] > 0 and row["bytes_freed"] > 0 for row in collections)
    assert [row["step"] for row in rows] == sorted(row["step"] for row in rows)


def test_the_picture_shows_something(out):
    pixels = matplotlib.image.imread(out / "history.png")
    assert pixels.shape[0] > 500 and pixels.shape[1] > 500
    assert len({tuple(color) for color in pixels[::3, ::3].reshape(-1, pixels.shape[2]).round(2)}) > 10


def test_last_checkpoint_rebuilds_the_trained_model(last, summary):
    model = build(Namespace(**last["arguments"]), last["image_shape"])
    sn.load_state_dict(model, last["model"])
    data = load("digits", None)
    with torch.no_grad():
        right = (model(data.test_images).argmax(1) == data.test_labels).float().mean().item()
    assert right == pytest.approx(summary["test_accuracy"])
    assert last["epoch"] == 4
    assert {name: alive for name, (alive, _) in sn.features(model).items()} == {
        name: alive for name, (alive, _) in summary["features"].items()
    }


def test_training_resumes_from_the_last_checkpoint(last):
    model = build(Namespace(**last["arguments"]), last["image_shape"])
    sn.load_state_dict(model, last["model"])
    data = load("digits", None)
    optimizer = torch.optim.Adam(sn.param_groups(model, lr=1e-3))
    optimizer.load_state_dict(last["optimizer"])
    collector = sn.GarbageCollector(model, data.images[:2], optimizers=[optimizer])
    collector.load_state_dict(last["collector"])
    before = torch.nn.functional.cross_entropy(model(data.images), data.labels)
    for _ in range(5):
        loss = torch.nn.functional.cross_entropy(model(data.images), data.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        collector.step()
    assert loss < before


# Runs where neither the package nor anything of the demo can be imported.
ALONE = """
import sys
sys.modules["shrinknets_fast"] = None
import torch
program = torch.export.load(sys.argv[1]).module()
batches = torch.load(sys.argv[2], weights_only=True)
torch.save([program(batch) for batch in batches], sys.argv[3])
"""


def test_plain_program_runs_without_the_package(out, last, tmp_path):
    images = load("digits", None).test_images
    batches = [images[:n] for n in (1, 2, 7, 300)]
    torch.save(batches, tmp_path / "batches.pt")
    paths = [str(path) for path in (out / "plain.pt2", tmp_path / "batches.pt", tmp_path / "logits.pt")]
    subprocess.run([sys.executable, "-c", ALONE, *paths], check=True, cwd=tmp_path, timeout=120)

    model = build(Namespace(**last["arguments"]), last["image_shape"])
    sn.load_state_dict(model, last["model"])
    for batch, logits in zip(batches, torch.load(tmp_path / "logits.pt"), strict=True):
        torch.testing.assert_close(logits, model(batch).detach(), atol=1e-5, rtol=0)


def test_a_table_for_people_ends_the_run(tmp_path, capsys):
    assert main(["train", *QUICK, "--epochs", "1", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    for word in (
        "hidden1",
        "hidden2",
        "parameters",
        "test accuracy",
        "collections",
        "history.png",
        "plain.pt2",
        "batch 64",
    ):
        assert word in shown.out
    for word in ("loss", "accuracy", "alive", "ms/step"):
        assert word in shown.err
