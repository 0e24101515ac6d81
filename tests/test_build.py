"""What was built, and the versions that it is tested with."""

import re
import shutil
import subprocess
import sys
import tomllib

import pytest
import torch
from building import FOLDER, ROOT, SMOKE, python, runs

from shrinknets_fast import _library
from shrinknets_fast.build_info import build_info

HAS_CUDA_LIBRARY = (FOLDER / "_C_cuda.so").exists()


def test_build_info_says_how():
    info = build_info()
    assert set(info) == {"torch_version", "cuda_version", "architectures", "compiler", "compiler_flags", "cuda_flags"}
    assert "-O3" in info["compiler_flags"] and re.match(r"\d+\.\d+", info["torch_version"])
    assert bool(info["cuda_version"]) == bool(info["architectures"]) == HAS_CUDA_LIBRARY


def test_the_libraries_that_exist_are_loaded():
    expected = ["_C_cpu.so"] + (["_C_cuda.so"] if HAS_CUDA_LIBRARY and torch.version.cuda else [])
    assert expected == _library.LOADED


def test_the_kernels_need_nothing_of_python():
    """One binary for every Python."""
    if not shutil.which("nm"):
        pytest.skip("needs nm")
    for library in FOLDER.glob("_C_*.so"):
        undefined = subprocess.run(
            ["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True
        ).stdout
        assert "torch_library_impl" in undefined
        assert not re.search(r"\bPy[A-Z_]|N2at|N3c10.*Tensor", undefined)


@pytest.mark.skipif(not HAS_CUDA_LIBRARY, reason="needs a build with nvcc")
def test_device_code_for_every_architecture():
    """What it uses is nvcc's choice: the build warns where a kernel needs local memory."""
    cuobjdump = shutil.which("cuobjdump") or pytest.importorskip("triton.knobs").nvidia.cuobjdump.path
    elf = runs([cuobjdump, "--list-elf", FOLDER / "_C_cuda.so"], FOLDER).stdout
    for architecture in build_info()["architectures"].split():
        assert f"sm_{architecture.removesuffix('-real')}" in elf


@pytest.mark.skipif(not torch.version.cuda, reason="a CPU build of torch loads no CUDA library")
def test_a_cuda_library_that_cannot_load_leaves_the_cpu_and_one_warning(tmp_path):
    package = shutil.copytree(FOLDER, tmp_path / "shrinknets_fast", ignore=shutil.ignore_patterns("__pycache__"))
    (package / "_C_cuda.so").unlink(missing_ok=True)
    (package / "_C_cuda.so").write_text("garbage")
    here = {"PYTHONPATH": str(tmp_path), "PYTHONWARNINGS": "always"}
    run = python(SMOKE, tmp_path, str(tmp_path), **here)
    (warning,) = [line for line in run.stderr.splitlines() if "Warning" in line]
    assert "on the CPU alone" in warning and f"{package}/_C_cuda.so: " in warning and torch.__version__ in warning
    assert "file too short" in warning or "invalid ELF" in warning
    run = runs([sys.executable, "-m", "shrinknets_fast", "info"], tmp_path, **here)
    assert run.returncode == 0 and f"{package}/_C_cpu.so" in run.stdout
    assert run.stderr.count("on the CPU alone") == 1


def versions_tested():
    """The one list of tested versions, newest first."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["shrinknets_fast"]["tested"]


def test_the_readme_and_the_workflow_have_the_versions_tested():
    tested = [(row["torch"], row["triton"], row["python"]) for row in versions_tested()]
    version = r"([\d.]+)"
    readme = re.findall(rf"^\| {version} \| {version} \| {version} \|$", (ROOT / "README.md").read_text(), re.M)
    workflow = (ROOT / ".github" / "workflows" / "test.yml").read_text()
    assert readme == tested
    assert re.findall(rf'torch: "{version}", triton: "{version}", python: "{version}"', workflow) == tested


def test_a_tested_torch_has_the_triton_of_its_row():
    """torch asks for a series (~=3.8.0), of which the row names the one that was tested."""
    triton = pytest.importorskip("triton")
    rows = {row["torch"]: row["triton"] for row in versions_tested()}
    expected = rows.get(torch.__version__.split("+")[0], triton.__version__)
    assert triton.__version__.split(".")[:2] == expected.split(".")[:2]
