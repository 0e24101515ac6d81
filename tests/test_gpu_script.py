"""bench/gpu.sh, without a GPU: all its stages at tiny sizes, and its book-keeping with a Python that only answers."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="DRY=1 is for machines without a GPU")


def call(out, **variables):
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "TOTAL")}
    env |= {"DRY": "1", "PYTHON": sys.executable, **variables}
    return subprocess.run(["bash", ROOT / "bench" / "gpu.sh", out], capture_output=True, text=True, env=env)


def statuses(out):
    return {path.name: path.read_text().strip() for path in (out / "done").iterdir()}


def test_every_stage_runs_without_a_gpu(tmp_path):
    run = call(tmp_path)
    done = statuses(tmp_path)
    assert run.returncode == 0, f"{done}\n{run.stdout[-6000:]}{run.stderr[-2000:]}"
    assert set(done.values()) == {"0"} and f"all {len(done)} stages passed" in run.stdout
    assert all(
        (tmp_path / f"{family}.jsonl").stat().st_size for family in ("layers", "compaction", "collection", "steps")
    )


@pytest.fixture
def answering(tmp_path):
    """A Python that notes what it is asked, and fails or hangs where a file says so."""
    path = tmp_path / "python"
    path.write_text(
        f"""#!/bin/bash
        [ "$1" = -c ] && exit 0
        echo "$@" >> {tmp_path}/asked
        while read -r words; do case "$*" in *$words*) exit 7 ;; esac; done < <(cat {tmp_path}/fails 2>/dev/null)
        while read -r words; do case "$*" in *$words*) sleep 60 ;; esac; done < <(cat {tmp_path}/hangs 2>/dev/null)
        exit 0
        """
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def asked(tmp_path):
    lines = (tmp_path / "asked").read_text().splitlines()
    (tmp_path / "asked").unlink()
    return [line for line in lines if "gpu_info" not in line and "bench table" not in line]


def test_a_second_call_does_what_failed_and_no_more(tmp_path, answering):
    out = tmp_path / "out"
    (tmp_path / "fails").write_text(
        "bench.crossover\nbench.goals\n"
    )  # a dry run expects that the goals have nothing to say
    run = call(out, PYTHON=answering)
    assert run.returncode == 1 and f"crossover: failed (7), see {out}/crossover.log" in run.stdout
    first = asked(tmp_path)
    (tmp_path / "fails").write_text("bench.goals\n")
    run = call(out, PYTHON=answering)
    assert run.returncode == 0, run.stdout
    assert [line for line in first if "crossover" in line] == asked(tmp_path)
    assert len(first) == len(
        [name for name in statuses(out) if not name.startswith("test-")]
    )  # a dry run only looks for those files
    assert call(out, PYTHON=answering).returncode == 0 and asked(tmp_path) == []


def test_a_stage_that_hangs_is_ended_and_what_is_left_is_said(tmp_path, answering):
    out = tmp_path / "out"
    (tmp_path / "hangs").write_text("bench.kernels --tiny --device emulated filter\n")
    run = call(out, PYTHON=answering, TOTAL="7")
    assert run.returncode == 1 and statuses(out) == {"build": "0", "kernel-fold": "0", "kernel-filter": "124"}
    assert "kernel-filter: failed (124)" in run.stdout and "tests: no time for it; call again" in run.stdout
    assert "past its limit" in (out / "kernel-filter.log").read_text()


def test_without_a_gpu_it_says_how_to_try_it(tmp_path):
    run = call(tmp_path, DRY="")
    assert run.returncode == 2 and run.stderr == "there is no GPU here; DRY=1 tries this script without one\n"
