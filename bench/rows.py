"""Results as data: rows appended to bench/results/*.jsonl, each with what it depends on."""

import json
import platform
import subprocess
from pathlib import Path
from statistics import median, quantiles

import torch

RESULTS = Path(__file__).parent / "results"


def commit():
    """The checkout's commit, "-dirty" where files differ from it; empty outside a checkout."""
    run = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        cwd=RESULTS.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return run.stdout.strip()


def cpu_name():
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    return names[0] if names else platform.processor()


def append(family, case, provider, seconds, **more):
    """One row: median, 20th and 80th percentile of the timings ``seconds``, in milliseconds. Returns it."""
    low, *_, high = quantiles(seconds, n=5) if len(seconds) > 1 else seconds * 2
    row = {
        "family": family,
        "case": case,
        "provider": provider,
        "commit": commit(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name(),
        "median_ms": 1e3 * median(seconds),
        "p20_ms": 1e3 * low,
        "p80_ms": 1e3 * high,
        "runs": len(seconds),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        **more,
    }
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{family}.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    return row
