"""Loads the compiled ops: the CPU library always, the CUDA one where it was built and torch has CUDA."""

from pathlib import Path

import torch

FOLDER = Path(__file__).parent
LOADED = []


def load():
    cpu, cuda = FOLDER / "_C_cpu.so", FOLDER / "_C_cuda.so"
    if not cpu.exists():
        raise ImportError(
            f"shrinknets_fast is not built: {cpu} is missing; run 'pip install --no-build-isolation -e .' in its checkout"
        )
    torch.ops.load_library(str(cpu))
    LOADED.append(cpu.name)
    if cuda.exists() and torch.version.cuda:
        torch.ops.load_library(str(cuda))
        LOADED.append(cuda.name)


load()
