"""Every Triton kernel compiles ahead of time for compute capabilities 8.0, 9.0, 10.0 and 12.0, without a GPU."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench import triton_resources

pytest.importorskip("triton.backends.nvidia")
ROOT = Path(__file__).parent.parent


def compiled(*arguments):
    """Rows of the tool's report; a process of its own, since this one may have loaded the kernels for the interpreter."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "bench.triton_resources", "--json", *arguments]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env)
    assert run.stdout, run.stderr
    return json.loads(run.stdout)


SHARED = {80: 163, 90: 227, 100: 227, 120: 99}  # KB of a block, as the CUDA programming guide has them
UNITS = {80: "mma.sync", 90: "wgmma", 100: "tcgen05.mma", 120: "mma.sync"}


def check(rows):
    assert {row["sm"] for row in rows} == set(SHARED)
    for row in rows:
        assert row["registers"] <= 255, row
        assert row["shared"] <= SHARED[row["sm"]] * 1024, row
        adds = "finish" in row["kernel"] or "norm" in row["kernel"]  # sums alone
        multiplies = row["dtype"] in ("float16", "bfloat16") and not adds
        if multiplies or row["dtype"] == "float32":
            assert row["mma"] == (UNITS[row["sm"]] if multiplies else ""), row


def test_every_kernel_in_its_most_demanding_variant():
    rows = compiled("--quick")
    kernels = (ROOT / "shrinknets_fast" / "triton_kernels").glob("*.py")
    assert {row["kernel"] for row in rows} == {
        k for f in kernels for k in re.findall(r"def (\w+_kernel)\(", f.read_text())
    }
    check(rows)
    for table in triton_resources.written().values():  # the numbers are a version's, the kernels and blocks are not
        assert [triton_resources.key(row) for row in triton_resources.of_quick(table)] == [
            triton_resources.key(row) for row in rows
        ]


@pytest.mark.slow
def test_every_variant():
    check(compiled())


def test_the_document_is_read_as_it_was_written():
    tables = triton_resources.written()
    assert triton_resources.document(tables) == triton_resources.DOCUMENT.read_text()
    assert all(len(table) == len(next(iter(tables.values()))) > 100 for table in tables.values())


def test_a_number_that_grew_is_named():
    table = next(iter(triton_resources.written().values()))[:3]
    more, less = [{**row, "spills": row["spills"] + change} for row, change in zip(table[:2], (8, -8), strict=True)]
    (grown,) = triton_resources.excess([more, less, table[2]], table)
    assert table[0]["kernel"] in grown and grown.endswith(f"spills: {table[0]['spills']} written")
    assert "write it anew" in triton_resources.excess(table[:2], table)[0]
