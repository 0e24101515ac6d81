import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import shrinknets_fast
from shrinknets_fast import _build_info, _library

FOLDER = Path(shrinknets_fast.__file__).parent
HAS_CUDA_LIBRARY = (FOLDER / "_C_cuda.so").exists()


def test_build_info_says_how():
    info = _build_info.build_info()
    assert set(info) == {"torch_version", "cuda_version", "architectures", "compiler", "compiler_flags", "cuda_flags"}
    assert "-O3" in info["compiler_flags"] and re.match(r"\d+\.\d+", info["torch_version"])
    assert bool(info["cuda_version"]) == bool(info["architectures"]) == HAS_CUDA_LIBRARY


def test_the_libraries_that_exist_are_loaded():
    expected = ["_C_cpu.so"] + (["_C_cuda.so"] if HAS_CUDA_LIBRARY and torch.version.cuda else [])
    assert expected == _library.LOADED


def test_the_kernels_need_nothing_of_python():
    """One binary for every Python: only build_info links against it."""
    if not shutil.which("nm"):
        pytest.skip("needs nm")
    for library in FOLDER.glob("_C_*.so"):
        undefined = subprocess.run(
            ["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True
        ).stdout
        assert "torch_library_impl" in undefined
        assert not re.search(r"\bPy[A-Z_]|N2at|N3c10.*Tensor", undefined)


@pytest.mark.skipif(not HAS_CUDA_LIBRARY, reason="needs a build with nvcc")
def test_device_code_for_every_architecture_without_spills():
    if not shutil.which("cuobjdump"):
        pytest.skip("needs cuobjdump")
    library = FOLDER / "_C_cuda.so"
    elf = subprocess.run(["cuobjdump", "--list-elf", library], capture_output=True, text=True, check=True).stdout
    for architecture in _build_info.build_info()["architectures"].split():
        assert f"sm_{architecture.removesuffix('-real')}" in elf
    usage = subprocess.run(["cuobjdump", "-res-usage", library], capture_output=True, text=True, check=True).stdout
    stacks = re.findall(r"STACK:(\d+)", usage)
    assert stacks and set(stacks) == {"0"}


def test_a_missing_library_is_one_clear_message(tmp_path):
    shutil.copytree(FOLDER, tmp_path / "shrinknets_fast", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", "import shrinknets_fast"], capture_output=True, text=True, cwd=tmp_path, env=env
    )
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: shrinknets_fast is not built") and "pip install" in last


@pytest.mark.parametrize(
    ("variables", "words"),
    [({"SN_CUDA": "maybe"}, "SN_CUDA is 'maybe'"), ({"TORCH_CUDA_ARCH_LIST": "hopper"}, "'hopper'")],
)
def test_bad_build_options_are_named(variables, words):
    root = FOLDER.parent
    if not (root / "setup.py").exists():
        pytest.skip("needs the source checkout")
    code = "import runpy, sys, setuptools; setuptools.setup = lambda **k: None; m = runpy.run_path('setup.py');"
    code += "m['wants_cuda'](); m['cmake_architectures'](__import__('os').environ.get('TORCH_CUDA_ARCH_LIST', '9.0'))"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=root, env={**os.environ, **variables}
    )
    assert run.returncode and words in run.stderr.strip().splitlines()[-1]
