"""Results as data: rows appended to <folder>/<family>.jsonl, each with the machine, versions and commit it depends on."""

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import torch

from shrinknets_fast.training.versions import version

RESULTS = Path(__file__).parent / "results"
ALWAYS = ("family", "case", "provider", "commit", "device", "median_ms")


def output_of(*command):
    try:
        run = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return run.stdout.strip()


@cache
def commit():
    """The checkout's commit, "-dirty" where code differs from it; $BENCH_COMMIT or empty outside a checkout."""
    if os.environ.get("BENCH_COMMIT"):
        return os.environ["BENCH_COMMIT"]
    changed = output_of("git", "status", "--porcelain", "--", ":/", ":!results", ":!charts", ":!REPORT.md")
    return output_of("git", "rev-parse", "--short=12", "HEAD") + ("-dirty" if changed else "")


def cpu_name():
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.processor()


@cache
def machine(kind):
    """What a timing on ``kind`` ("cpu" or "cuda") depends on."""
    gpu = torch.cuda.get_device_name() if kind == "cuda" else None
    driver = output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") if gpu else ""
    return {
        "device": gpu or cpu_name(),
        "kind": kind,
        "gpu": gpu,
        "driver": driver.splitlines()[0] if driver else None,
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "triton": version("triton"),
        "python": platform.python_version(),
    }


def make(family, case, provider, kind, **fields):
    """A row. ``median_ms`` is None where nothing was timed."""
    row = {"family": family, "case": case, "provider": provider, "commit": commit(), **machine(kind), "median_ms": None}
    row["time"] = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {**row, **fields}


def append(row, folder=RESULTS):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{row['family']}.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


def read(folder=RESULTS):
    """All rows of a folder, file by file, oldest first."""
    return [json.loads(line) for path in sorted(Path(folder).glob("*.jsonl")) for line in path.read_text().splitlines()]
