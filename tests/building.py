"""What tests of the build and of what was built share: processes without its variables, a smoke run."""

import os
import subprocess
import sys
from pathlib import Path

import shrinknets_fast

ROOT = Path(__file__).parent.parent
FOLDER = Path(shrinknets_fast.__file__).parent
VARIABLES = (
    "SN_CUDA",
    "CUDA_HOME",
    "CUDA_PATH",
    "TORCH_CUDA_ARCH_LIST",
    "CXX",
    "MAX_JOBS",
    "CMAKE_BUILD_PARALLEL_LEVEL",
)
SMOKE = """
import sys, torch, shrinknets_fast as sn
assert sn.__file__.startswith(sys.argv[1]), sn.__file__
model = torch.nn.Sequential(sn.FilteredLinear(8, 6, activation="relu"), torch.nn.Linear(6, 2))
gc = sn.GarbageCollector(model, torch.randn(4, 8))
model(torch.randn(4, 8)).sum().backward()
assert all(p.grad is not None for p in model.parameters())
with torch.no_grad():
    model[0].theta[:2] = 0
gc.collect()
assert model(torch.randn(4, 8)).shape == (4, 2) and model[1].in_features == 4
"""


def runs(command, folder, **variables):
    env = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env={**env, **variables})


def python(code, folder, *arguments, **variables):
    run = runs([sys.executable, "-c", code, *arguments], folder, **variables)
    assert run.returncode == 0, run.stderr[-3000:]
    return run
