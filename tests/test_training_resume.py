"""--resume: goes on with the run's own arguments, and refuses in one line, with nothing changed, what would be another run."""

import fcntl
import os

import pytest
import torch
from training_runs import assert_same_end

import shrinknets_fast as sn
from shrinknets_fast.__main__ import main

QUICK = ["--width", "24", "--epochs", "2", "--batch-size", "64", "--lr", "1e-2", "--lam", "2e-2"]


def train(folder, *options):
    assert main(["train", *options, "--out", str(folder)]) == 0


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A run of two epochs; not to be changed."""
    folder = tmp_path_factory.mktemp("done") / "run"
    train(folder, *QUICK)
    return folder


@pytest.fixture
def folder(done, tmp_path):
    """A copy of it."""
    there = tmp_path / "run"
    there.mkdir()
    for path in done.iterdir():
        (there / path.name).write_bytes(path.read_bytes())
    return there


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else None


def refused(capsys, folder, *options):
    """The one line; nothing has changed."""
    before = contents(folder)
    capsys.readouterr()
    assert main(["train", *options, "--out", str(folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert contents(folder) == before
    return line


def test_no_argument_has_to_be_repeated_and_a_finished_run_ends_the_same(done, folder):
    train(folder, "--resume")
    assert_same_end(folder, done)


def test_more_epochs_are_those_of_a_longer_run(folder, tmp_path):
    """Though the shorter run has removed its last dead features at its end."""
    train(folder, "--resume", "--epochs", "4")
    longer = tmp_path / "longer"
    train(longer, *QUICK, "--epochs", "4")
    assert_same_end(folder, longer)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--lr", "2e-2"], ("with --lr 0.02 is given", "with --lr 0.01")),
        (["--lr", "1e-3"], ("with --lr 0.001 is given", "with --lr 0.01")),  # the default, but given
        (["--model", "lenet5"], ("--model lenet5", "--model mlp")),
        (["--width", "25"], ("--width 25", "--width 24")),
        (["--seed", "1"], ("--seed 1", "--seed 0")),
        (["--align", "8"], ("with --align 8", "without --align")),
        (["--amp"], ("with --amp bf16", "without --amp")),
        (["--proximal"], ("with --proximal", "without --proximal")),
        (["--no-collect"], ("with --no-collect", "without --no-collect")),
        (["--epochs", "1"], ("--epochs 1 ends at step 23", "at step 46, in epoch 2")),
    ],
    ids=lambda value: " ".join(value),
)
def test_another_argument(given, words, done, capsys):
    line = refused(capsys, done, "--resume", *given)
    assert all(word in line for word in (*words, "last.pt")), line


@pytest.mark.parametrize("there", [True, False])
def test_no_checkpoint(there, tmp_path, capsys):
    if there:
        (tmp_path / "run").mkdir()
    assert f"--resume: there is no checkpoint {tmp_path / 'run' / 'last.pt'}" in refused(
        capsys, tmp_path / "run", "--resume"
    )


def flipped(content):
    """One bit of a weight."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "damage",
    [lambda c: c[: len(c) // 2], lambda c: b"", lambda c: b"hello", flipped, lambda c: c[:-1]],
    ids=["half", "empty", "text", "bit", "last byte"],
)
def test_a_damaged_checkpoint(damage, folder, capsys):
    path = folder / "last.pt"
    path.write_bytes(damage(path.read_bytes()))
    assert f"--resume: {path} is damaged" in refused(capsys, folder, "--resume")


def changed(path, change):
    state = torch.load(path, weights_only=True)
    torch.save(change(state) or state, path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s["model"], "is no checkpoint of this command: it lacks"),
        (lambda s: s.pop("history") and None, "it lacks history"),
        (
            lambda s: s["model"].pop("hidden1.theta") is None,
            r"does not fit: load_state_dict: missing ['hidden1.theta']",
        ),
        (lambda s: s["arguments"].update(width=20), "does not fit: load_state_dict: hidden"),
        (lambda s: s["arguments"].update(model="lenet5"), "does not fit: load_state_dict: missing"),
        (lambda s: s.update(images=1000), "does not fit: it was trained on images of shape [1000, 1, 8, 8]"),
        (lambda s: s["optimizer"]["param_groups"].pop() is None, "does not fit: "),
    ],
)
def test_a_checkpoint_of_something_else(change, words, folder, capsys):
    changed(folder / "last.pt", change)
    assert words in refused(capsys, folder, "--resume")


def test_a_folder_that_another_run_writes_into(folder, capsys):
    handle = os.open(folder, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    for options in (["--resume"], QUICK):
        assert f"--out {folder}: another run is writing there" in refused(capsys, folder, *options)
    os.close(handle)
    train(folder, "--resume")


def test_nothing_of_an_earlier_run_stands_beside_a_new_checkpoint(folder, capsys, monkeypatch):
    """The new one fails in its second epoch: after its first checkpoint, before its summary."""
    from shrinknets_fast.training import loop

    real_step = loop.Trainer.step

    def step(trainer, *batch):
        if trainer.step_count == 30:
            raise sn.ShrinkError("enough")
        return real_step(trainer, *batch)

    monkeypatch.setattr(loop.Trainer, "step", step)
    old = (folder / "last.pt").read_bytes()
    assert main(["train", *QUICK, "--seed", "1", "--out", str(folder)]) == 2
    assert "epoch 2, step 30: enough" in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == ["history.jsonl", "last.pt"]
    assert (folder / "last.pt").read_bytes() != old


def test_what_a_killed_run_had_begun_to_write_goes(folder):
    (folder / ".last.pt.part").write_bytes(b"half")
    train(folder, "--resume")
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
