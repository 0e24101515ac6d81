"""Compiles every Triton kernel ahead of time, without a GPU, and says what it uses: ``python -m bench.triton_resources``.

Writes docs/triton.md; ``--json`` prints the rows instead. A spill is a failure. What is compiled is in triton_cases.py.
"""

import argparse
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from .triton_cases import cases

ARCHITECTURES = (80, 90)
DOCUMENT = Path(__file__).parent.parent / "docs" / "triton.md"
HEAD = """# What the Triton kernels use

Written by `python -m bench.triton_resources`, without a GPU: every kernel, compiled ahead of time with Triton {version} for
every dtype and block size that a launch can choose. Blocks are M x N x K, warps, stages. Registers are per thread, shared memory
is bytes per program; `wgmma` says whether products run on Hopper's warp-group instructions. `tests/test_triton_compile.py`
fails on a spill.

| kernel | dtype | blocks | sm | registers | shared | spills | wgmma |
| --- | --- | --- | --- | --- | --- | --- | --- |
"""


def resources(case, architecture):
    """The row of one case: the most that any of its variants takes, read from the binary."""
    import triton
    from triton.backends.compiler import GPUTarget

    target = GPUTarget("cuda", architecture, 32)
    compiled = [triton.compile(case.source(v), target=target, options=case.options) for v in case.variants]
    usage = [resource_usage(c.asm["cubin"]) for c in compiled]
    return {
        "kernel": case.kernel.__name__,
        "dtype": case.dtype,
        "blocks": list(case.blocks),
        "sm": architecture,
        "registers": max(u["REG"] for u in usage),
        "shared": max(c.metadata.shared for c in compiled),
        "spills": max(u["STACK"] + u["LOCAL"] for u in usage),
        "wgmma": all("wgmma.mma_async" in c.asm["ptx"] for c in compiled),
    }


def resource_usage(cubin):
    """{"REG": ..., "STACK": ..., "LOCAL": ...} by the cuobjdump that Triton carries."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        tool = [knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        text = subprocess.run(tool, capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}


def row(task):
    index, architecture, quick = task
    case = list(cases())[index]
    if quick:
        case.variants = case.variants[:1]
    return resources(case, architecture)


def rows(quick=False):
    """Of all cases, in parallel: one kernel takes half a second, most of it ptxas."""
    tasks = [(index, sm, quick) for index in range(len(list(cases()))) for sm in ARCHITECTURES]
    with multiprocessing.get_context("spawn").Pool(min(len(os.sched_getaffinity(0)), 8)) as pool:
        return pool.map(row, tasks, chunksize=1)


def document(rows, version):
    lines = [
        f"| {r['kernel']} | {r['dtype']} | {'x'.join(map(str, r['blocks'][:3]))}, {r['blocks'][3]}, {r['blocks'][4]} "
        f"| {r['sm']} | {r['registers']} | {r['shared']:,} | {r['spills']} | {'yes' if r['wgmma'] else ''} |"
        for r in rows
    ]
    return HEAD.format(version=version) + "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(prog="python -m bench.triton_resources", description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print the rows as JSON and write nothing")
    parser.add_argument("--quick", action="store_true", help="each case's first variant only: bias and relu")
    arguments = parser.parse_args()
    os.environ.pop("TRITON_INTERPRET", None)  # an interpreted kernel cannot be compiled
    import triton

    found = rows(arguments.quick)
    if arguments.json:
        print(json.dumps(found))
    else:
        DOCUMENT.write_text(document(found, triton.__version__))
        print(f"{len(found)} rows in {DOCUMENT}")
    return int(any(row["spills"] for row in found))


if __name__ == "__main__":
    sys.exit(main())
