"""Loads the compiled ops: the CPU library always, the CUDA one where it was built and torch has CUDA."""

import warnings
from pathlib import Path

import torch

FOLDER = Path(__file__).parent
LOADED: list[str] = []


def load() -> None:
    cpu, cuda = FOLDER / "_C_cpu.so", FOLDER / "_C_cuda.so"
    if not cpu.exists():
        raise ImportError(
            f"shrinknets_fast is not built: {cpu} is missing; run 'pip install --no-build-isolation -e .' in its checkout"
        )
    torch.ops.load_library(str(cpu))
    LOADED.append(cpu.name)
    if cuda.exists() and torch.version.cuda:
        try:
            torch.ops.load_library(str(cuda))
        except OSError as error:  # cut short, or of another CUDA or torch; what runs on the CPU needs none of it
            loader = error.__cause__ or error  # torch may put its own words around the reason
            reason = f"torch {torch.__version__} cannot load {cuda}: {' '.join(str(loader).split())}"
            warnings.warn(
                f"shrinknets_fast runs on the CPU alone, build it anew: {reason}", RuntimeWarning, stacklevel=2
            )
        else:
            LOADED.append(cuda.name)


load()
