"""Compiles every Triton kernel ahead of time, without a GPU, and says what it uses: ``python -m bench.triton_resources``.

Writes docs/triton.md; ``--json`` prints the rows instead. A spill is a failure. New kernels: one ``Case`` each in ``cases()``.
"""

import argparse
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ARCHITECTURES = (80, 90)
TYPES = {"float32": "fp32", "tf32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
PRODUCTS = {"float32": "ieee", "tf32": "tf32", "float16": "half", "bfloat16": "half"}
UNIT = {"float32": 4, "tf32": 4, "float16": 8, "bfloat16": 8}
DOCUMENT = Path(__file__).parent.parent / "docs" / "triton.md"
HEAD = """# What the Triton kernels use

Written by `python -m bench.triton_resources`, without a GPU: every kernel, compiled ahead of time with Triton {version} for
every dtype and block size that a launch can choose. Blocks are M x N x K, warps, stages. Registers are per thread, shared memory
is bytes per program; `wgmma` says whether products run on Hopper's warp-group instructions. `tests/test_triton_compile.py`
fails on a spill.

| kernel | dtype | blocks | sm | registers | shared | spills | wgmma |
| --- | --- | --- | --- | --- | --- | --- | --- |
"""


@dataclass
class Case:
    """One kernel in one dtype with one choice of blocks, in every variant that a launch can ask for.

    types: Triton's type by argument, "i32" for what it does not name. options: num_warps and num_stages.
    variants: for each, {argument: its constant} and other ``types``, the most demanding first. Pointers are aligned; of integers
    nothing is known.
    """

    kernel: object
    dtype: str
    blocks: tuple
    types: dict
    options: dict
    variants: list

    def source(self, variant):
        from triton.compiler import ASTSource

        names = self.kernel.arg_names
        constants = {n: v for n, v in variant.items() if n in names}
        types = {**self.types, **variant.get("types", {})}
        signature = {n: "constexpr" if n in constants else types.get(n, "i32") for n in names}
        attributes = {(names.index(n),): [["tt.divisibility", 16]] for n, t in signature.items() if t.startswith("*")}
        return ASTSource(self.kernel, signature, constexprs=constants, attrs=attributes)


def cases():
    from shrinknets_fast.triton_kernels import linear, linear_blocks

    for (name, products), choices in linear_blocks.BLOCKS.items():
        for dtype in (d for d, p in PRODUCTS.items() if p == products):
            for size, blocks in choices.items():
                options = linear_blocks.launch_options(blocks)
                yield linear_case(getattr(linear, f"{name}_kernel"), dtype, blocks, options, size != "unaligned")


def linear_case(kernel, dtype, blocks, options, aligned):
    """With and without bias and relu; with float32 parameters, as under autocast; where rows are not aligned, contiguous,
    strided, and strided with huge steps."""
    types = dict.fromkeys(("x", "grad", "out", "dx", "weight", "bias", "dweight", "dbias"), f"*{TYPES[dtype]}")
    fixed = {"WIDE": False, "UNIT": UNIT[dtype] if aligned else 1, "PRECISION": "tf32" if dtype == "tf32" else "ieee"}
    fixed |= {n: v for n, v in options.items() if "BLOCK" in n}
    dense = {"x_k": 1, "weight_k": 1, "grad_n": 1}
    flags = [{"HAS_BIAS": bias, "RELU": relu} for bias in (True, False) for relu in (True, False)]
    variants = [{**fixed, **dense, **f} for f in flags]
    parameters = dict.fromkeys(("weight", "bias", "dweight", "dbias"), "*fp32")
    if types["x"] != "*fp32":
        variants.append({**variants[0], "types": parameters})
    if not aligned:
        variants += [{**fixed, **flags[0]}, {**fixed, **flags[0], "WIDE": True}]
    launch = {n: v for n, v in options.items() if "num_" in n}
    return Case(kernel, dtype, blocks, {**types, "theta": "*fp32", "dtheta": "*fp32"}, launch, variants)


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
