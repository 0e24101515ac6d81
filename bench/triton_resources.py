"""Compiles every Triton kernel ahead of time, without a GPU, and says what it uses: ``python -m bench.triton_resources``.

Writes the installed Triton's section of docs/triton.md; ``--compare`` compares with it instead, ``--json`` prints the rows.
Registers and spills are the compiler's choice, so they are compared with the same version's only. What is compiled is in
triton_linear_cases.py, triton_conv_cases.py and triton_norm_cases.py.
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

from . import triton_conv_cases, triton_linear_cases, triton_norm_cases

ARCHITECTURES = (80, 90, 100, 120)
MATRIX_UNITS = ("wgmma", "tcgen05.mma", "mma.sync")  # PTX of Hopper, of data-centre Blackwell, of all others
NUMBERS = ("registers", "shared", "spills")
DOCUMENT = Path(__file__).parent.parent / "docs" / "triton.md"
HEAD = """# What the Triton kernels use

Written by `python -m bench.triton_resources`, without a GPU: every kernel, compiled ahead of time for every dtype and block size
that a launch can choose; a section for each version of Triton that it ran with. Blocks are M x N x K, warps, stages. Registers
and bytes of spills are per thread, bytes of shared memory per program; `mma` is the instruction that products run on, empty where
they are exact float32 or there are none. `tests/test_triton_compile.py` demands that each kernel compiles, fits and
uses the architecture's own instruction. Numbers are the compiler's: `python -m bench.triton_resources --compare` lists those that
grew since.
"""
SECTION = """
## Triton {version}

{spilling} of {total} rows spill, {most} bytes at most.

| kernel | dtype | blocks | sm | registers | shared | spills | mma |
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
        "mma": next((name for name in MATRIX_UNITS if all(name in c.asm["ptx"] for c in compiled)), ""),
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


def cases():
    yield from triton_linear_cases.cases()
    yield from triton_conv_cases.cases()
    yield from triton_norm_cases.cases()


def row(task):
    index, architecture, quick = task
    case = list(cases())[index]
    if quick:
        case.variants = case.variants[:1]
    return resources(case, architecture)


def firsts():
    """The indices of each kernel's first case of a dtype."""
    names = [(case.kernel.__name__, case.dtype) for case in cases()]
    return {names.index(name) for name in names}


def rows(quick=False):
    """Of all cases, in parallel: one kernel takes half a second, most of it ptxas. quick: on Blackwell one block size of each."""
    one = firsts() if quick else ()
    tasks = [
        (index, sm, quick)
        for index in range(len(list(cases())))
        for sm in ARCHITECTURES
        if not quick or sm < 100 or index in one
    ]
    with multiprocessing.get_context("spawn").Pool(min(len(os.sched_getaffinity(0)), 8)) as pool:
        return pool.map(row, tasks, chunksize=1)


def key(row):
    """What a row is about. Not unique: rows are in the order of the cases."""
    return row["kernel"], row["dtype"], tuple(row["blocks"]), row["sm"]


def line(row):
    *sizes, warps, stages = row["blocks"]
    blocks = f"{'x'.join(map(str, sizes))}, {warps}, {stages}"
    cells = [row["kernel"], row["dtype"], blocks, row["sm"], row["registers"], f"{row['shared']:,}", row["spills"]]
    return f"| {' | '.join(map(str, cells))} | {row['mma']} |"


def parsed(line):
    """The row that ``line`` was made of."""
    kernel, dtype, blocks, *numbers, mma = (cell.strip() for cell in line.split("|")[1:-1])
    sm, registers, shared, spills = (int(number.replace(",", "")) for number in numbers)
    blocks = [int(size) for size in re.findall(r"\d+", blocks)]
    row = {"kernel": kernel, "dtype": dtype, "blocks": blocks, "sm": sm, "registers": registers, "shared": shared}
    return {**row, "spills": spills, "mma": mma}


def document(tables):
    """The text of docs/triton.md for {version of Triton: rows}, the newest version first."""
    text = HEAD
    for version in sorted(tables, key=lambda v: [int(n) for n in re.findall(r"\d+", v)], reverse=True):
        rows = tables[version]
        spills = [row["spills"] for row in rows]
        counts = {"spilling": sum(map(bool, spills)), "total": len(rows), "most": max(spills)}
        text += SECTION.format(version=version, **counts) + "\n".join(map(line, rows)) + "\n"
    return text


def written(text=None):
    """The {version of Triton: rows} of docs/triton.md, or of a ``text`` in its form."""
    sections = (DOCUMENT.read_text() if text is None else text).split("\n## Triton ")[1:]
    return {s.split()[0]: [parsed(row) for row in re.findall(r"^\| \w+_kernel \|.*$", s, re.M)] for s in sections}


def excess(rows, table):
    """A line for each number that is more than in the written ``table``. Of fewer variants than written, numbers may be less."""
    if [key(row) for row in rows] != [key(row) for row in table]:
        return [f"{DOCUMENT.name} is of other kernels or blocks than these: write it anew"]
    pairs = [(row, old, name) for row, old in zip(rows, table, strict=True) for name in NUMBERS]
    return [f"{line(row)} {name}: {old[name]} written" for row, old, name in pairs if row[name] > old[name]]


def of_quick(table):
    """The rows of ``table`` that a quick run has too."""
    one, count = firsts(), len(ARCHITECTURES)
    return [row for k, row in enumerate(table) if row["sm"] < 100 or k // count in one]


def main():
    parser = argparse.ArgumentParser(prog="python -m bench.triton_resources", description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print the rows as JSON and write nothing")
    parser.add_argument(
        "--compare", action="store_true", help="write nothing; status 1 if a number grew, 2 if this Triton has no table"
    )
    parser.add_argument("--quick", action="store_true", help="each case's first variant only: bias and relu")
    arguments = parser.parse_args()
    if arguments.quick and not (arguments.json or arguments.compare):
        parser.error("--quick is for --json and --compare: the document is of all variants")
    os.environ.pop("TRITON_INTERPRET", None)  # an interpreted kernel cannot be compiled
    from triton import __version__ as version

    tables = written()
    if arguments.compare and version not in tables:
        print(f"{DOCUMENT} has no table of Triton {version}, only of {', '.join(tables)}")
        return 2
    found = rows(arguments.quick)
    if arguments.json:
        print(json.dumps(found))
    elif arguments.compare:
        grown = excess(found, of_quick(tables[version]) if arguments.quick else tables[version])
        print(*grown, f"{len(grown)} numbers are more than written for Triton {version}", sep="\n")
        return int(bool(grown))
    else:  # a table of kernels that are no more says nothing of these
        kept = {v: t for v, t in tables.items() if [key(row) for row in t] == [key(row) for row in found]}
        DOCUMENT.write_text(document({**kept, version: found}))
        print(f"{len(found)} rows of Triton {version} in {DOCUMENT}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
