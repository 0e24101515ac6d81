"""Every Triton kernel compiles ahead of time for compute capabilities 8.0 and 9.0, without a GPU."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton.backends.nvidia")
ROOT = Path(__file__).parent.parent


def compiled(*arguments):
    """Rows of the tool's report; a process of its own, since this one may have loaded the kernels for the interpreter."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "bench.triton_resources", "--json", *arguments]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env)
    assert run.stdout, run.stderr
    return json.loads(run.stdout)


def check(rows):
    assert {row["sm"] for row in rows} == {80, 90}
    for row in rows:
        assert row["spills"] == 0 and row["registers"] <= 255, row
        assert row["shared"] <= {80: 163 * 1024, 90: 227 * 1024}[row["sm"]], row
        if row["dtype"] in ("float16", "bfloat16"):  # a kernel that finishes sums multiplies nothing
            assert row["wgmma"] == (row["sm"] == 90 and "finish" not in row["kernel"]), row


def test_every_kernel_in_its_most_demanding_variant():
    rows = compiled("--quick")
    kernels = (ROOT / "shrinknets_fast" / "triton_kernels").glob("*.py")
    assert {row["kernel"] for row in rows} == {
        k for f in kernels for k in re.findall(r"def (\w+_kernel)\(", f.read_text())
    }
    check(rows)


@pytest.mark.slow
def test_every_variant_and_the_table_in_the_docs():
    rows = compiled()
    check(rows)
    written = (ROOT / "docs" / "triton.md").read_text()
    for row in rows:  # the numbers are another Triton's where the version differs, the kernels are not
        assert f"| {row['kernel']} | {row['dtype']} | {'x'.join(map(str, row['blocks'][:3]))}, " in written
