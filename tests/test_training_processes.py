"""Several processes train as one does, write as one does, and refuse in one line."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from ranks import run_ranks
from training_runs import FILES, check_whole, ended, finished, ranks_finished, ranks_started, rows_of

ROOT = Path(__file__).resolve().parents[1]


def test_two_ranks_end_as_one_process_does(tmp_path):
    """In float64 and with shares of different sizes, one of them empty."""
    first, second = run_ranks(["trainer"], tmp_path / "ranks", 90)["trainer"].good()
    together, alone, other = first["all"], first["alone"], second["all"]
    assert [row for row in alone["history"]["rows"] if row["kind"] == "collection"], "nothing was collected"
    for name, value in alone["model"].items():
        assert torch.equal(together["model"][name], other["model"][name]), name
        torch.testing.assert_close(together["model"][name], value, rtol=1e-9, atol=1e-9)
    for one, many in zip(alone["optimizer"]["state"].values(), together["optimizer"]["state"].values(), strict=True):
        torch.testing.assert_close(many, one, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(together["history"]["losses"], alone["history"]["losses"], rtol=1e-9, atol=1e-9)
    assert together["history"]["losses"].equal(other["history"]["losses"])


def test_rank_0_alone_writes_and_speaks_and_one_process_can_go_on(tmp_path):
    folder = tmp_path / "run"
    (status, said), (other_status, other_said) = ranks_finished(folder, "--epochs", "1")
    assert status == other_status == 0, said + other_said
    assert "test accuracy" in said and "it/s" not in other_said and "accuracy" not in other_said
    check_whole(folder)
    assert sorted(path.name for path in folder.iterdir()) == FILES
    status, said = finished(folder, "--resume", "--epochs", "2")
    assert status == 0, said
    assert [row["epoch"] for row in rows_of(folder) if row["kind"] == "epoch"] == [1, 2]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--lam", "-1"], "--lam: '-1' is not a finite number"),
        (["--device", "cuda:7"], "--device 'cuda:7' is one GPU for 2 processes"),
        (["--resume"], "there is no checkpoint"),
    ],
    ids=["parsed", "before the model", "on rank 0"],
)
def test_a_refusal_is_said_once_and_by_all_meant(options, words, tmp_path):
    (status, said), (other_status, other_said) = ranks_finished(tmp_path / "run", *options)
    assert status == other_status == 2
    assert words in said and len(said.splitlines()) == 1
    assert other_said == ""
    assert not (tmp_path / "run").exists()


def test_a_rank_without_the_others_is_one_line(tmp_path):
    status, said = finished(tmp_path / "run", variables={"WORLD_SIZE": "2", "RANK": "0"})
    assert status == 2 and len(said.splitlines()) == 1 and "WORLD_SIZE is 2" in said


def test_ctrl_c_of_one_rank_stops_all_at_the_same_step(tmp_path):
    folder = tmp_path / "run"
    processes = ranks_started(folder, "--epochs", "100000")
    deadline = time.monotonic() + 60
    while not (folder / "last.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(processes[1].pid, signal.SIGINT)
    results = ended(folder, processes)
    assert [status for status, _ in results] == [130, 130], results
    assert "stopped by Ctrl-C" in results[0][1]
    assert sorted(path.name for path in folder.iterdir()) == FILES


@pytest.mark.slow
def test_torchrun(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "shrinknets_fast", "train", "--width", "24", "--epochs", "2", "--lr", "1e-2", "--lam", "2e-2"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for more in ([], ["--resume", "--epochs", "3", "--compile"]):
        done = subprocess.run([*command, *more, "--out", "run"], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("test accuracy") == 1
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == FILES
