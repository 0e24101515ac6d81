"""setup.py: what it looks for, what it is told, what goes into a wheel and a source distribution."""

import importlib.util
import os
import re
import shutil
import stat
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
import setuptools
import torch
from building import ROOT, SMOKE, VARIABLES, python, runs

SOURCES = (
    "setup.py",
    "pyproject.toml",
    "CMakeLists.txt",
    "MANIFEST.in",
    "README.md",
    "LICENSE",
    "csrc",
    "shrinknets_fast",
)
WHEEL = "from setuptools import build_meta; build_meta.build_wheel('dist')"
SDIST = "from setuptools import build_meta; build_meta.build_sdist('dist')"


def program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def nvcc(home, release="13.0", architectures=(75, 80, 86, 90, 100, 120)):
    """A CUDA toolkit whose compiler only talks."""
    known = "\n".join(f"compute_{a}" for a in architectures)
    answers = f'case $1 in --version) echo "release {release}, V{release}.1" ;; *) echo "{known}" ;; esac'
    return str(program(home / "bin" / "nvcc", answers))


@pytest.fixture
def driver(monkeypatch):
    """setup.py as a module, in an environment that wishes nothing."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(setuptools, "setup", lambda **arguments: None)
    spec = importlib.util.spec_from_file_location("driver", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkout(tmp_path):
    """The sources alone, without anything built."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.so", "build_info.json", "__pycache__")
            )
        else:
            shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture
def fake_cmake(tmp_path):
    """A PATH whose cmake writes down its arguments, and libraries that are new and hold nothing."""
    text = f"""echo "$@" >> {tmp_path}/arguments
    for argument; do case $argument in
      -DSN_OUTPUT=*) mkdir -p "${{argument#*=}}"; cd "${{argument#*=}}"; for name in _C_cpu.so _C_cuda.so build_info.json; do
        echo new > $name; done ;;
    esac; done"""
    return f"{program(tmp_path / 'fake' / 'cmake', text).parent}{os.pathsep}{os.environ['PATH']}"


def test_a_missing_library_is_one_clear_message(checkout):
    run = runs([sys.executable, "-c", "import shrinknets_fast"], checkout, PYTHONPATH=str(checkout))
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: shrinknets_fast is not built") and "pip install" in last


def test_every_missing_tool_is_named_at_once(driver, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SystemExit) as error:
        driver.build_tools()
    missing = ("cmake (pip", "ninja (pip", "torch (pip install 'torch>=2.11')", "a C++ compiler")
    assert all(name in str(error.value) for name in missing) and "\n" not in str(error.value)
    for name in ("cmake", "g++"):
        program(tmp_path / name, "")
    with pytest.raises(SystemExit, match=r"missing: ninja \(pip install ninja\), torch[^,]*$"):
        driver.build_tools()


def test_tools_beside_this_python_are_found_without_its_path(driver, monkeypatch, tmp_path):
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / "scripts"))
    monkeypatch.setenv("PATH", str(tmp_path))
    expected = [str(program(tmp_path / "scripts" / name, "")) for name in ("cmake", "ninja")]
    program(tmp_path / "c++", "")
    assert driver.build_tools() == expected


def test_a_build_without_torch_ends_in_one_line(checkout):
    code = "import runpy, sys; sys.modules['torch'] = None; sys.argv = ['setup.py', 'build_ext'];"
    run = runs([sys.executable, "-c", code + "runpy.run_path('setup.py', run_name='__main__')"], checkout)
    assert run.returncode and "Traceback" not in run.stderr
    assert run.stderr.strip().splitlines()[-1].startswith("shrinknets_fast cannot be built, missing: torch (pip")


@pytest.mark.parametrize(
    ("name", "value", "call", "words"),
    [
        ("SN_CUDA", "maybe", lambda d, t: d.wants_cuda("13.0"), "SN_CUDA is 'maybe', expected 0 or 1"),
        ("CXX", "no-such -O2", lambda d, t: d.build_tools(), "CXX is 'no-such -O2', but"),
        ("MAX_JOBS", "many", lambda d, t: d.jobs(), "MAX_JOBS is 'many', expected a whole number"),
        ("CMAKE_BUILD_PARALLEL_LEVEL", "-1", lambda d, t: d.jobs(), "CMAKE_BUILD_PARALLEL_LEVEL is '-1', expected"),
        ("TORCH_CUDA_ARCH_LIST", "9.0;hopper", lambda d, t: d.architectures(nvcc(t)), "holds 'hopper', expected 9.0, "),
        ("TORCH_CUDA_ARCH_LIST", "Ada+PTX", lambda d, t: d.architectures(nvcc(t)), "holds 'Ada+PTX', expected 9.0, "),
        (
            "TORCH_CUDA_ARCH_LIST",
            "Volta",
            lambda d, t: d.architectures(nvcc(t)),
            "does not compile for 7.0, only for 7.5, 8.0",
        ),
        (
            "CUDA_HOME",
            "/no/cuda",
            lambda d, t: d.wants_cuda("13.0"),
            "CUDA_HOME is '/no/cuda', but /no/cuda/bin/nvcc does not",
        ),
        ("CUDA_PATH", "/no/cuda", lambda d, t: d.wants_cuda("13.0"), "CUDA_PATH is '/no/cuda', but"),
        ("SN_CUDA", "1", lambda d, t: d.wants_cuda(None), "SN_CUDA=1, but torch is a CPU build"),
    ],
)
def test_a_bad_wish_is_named_in_one_line(driver, monkeypatch, tmp_path, name, value, call, words):
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as error:
        call(driver, tmp_path)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_cuda_home_goes_before_the_path(driver, monkeypatch, tmp_path):
    on_path, home = nvcc(tmp_path / "usr"), nvcc(tmp_path / "cuda")
    monkeypatch.setenv("PATH", str(tmp_path / "usr/bin"), prepend=os.pathsep)
    assert driver.wants_cuda("13.2") == on_path
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    assert driver.wants_cuda("13.2") == home


def test_an_nvcc_of_another_major_version_is_said(driver, monkeypatch, tmp_path, capsys):
    old = nvcc(tmp_path, release="12.8")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    said = f"{old} is 12.8, but torch was built with CUDA 13.0"
    assert driver.wants_cuda("13.0") is None
    assert capsys.readouterr().out == f"shrinknets_fast: building the CPU library alone ({said})\n"
    for name, value in (("SN_CUDA", "1"), ("CUDA_HOME", str(tmp_path))):
        with monkeypatch.context() as patch, pytest.raises(SystemExit, match=f"{re.escape(said)}"):
            patch.setenv(name, value)
            driver.wants_cuda("13.0")


@pytest.mark.parametrize("text", ["", "native"])
def test_what_is_compiled_for_is_what_nvcc_knows(driver, monkeypatch, tmp_path, text):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", text)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: [(9, 0), (8, 6)][index])
    assert driver.architectures(nvcc(tmp_path)) == {"": "80-real;90-real;100", "native": "86-real;90"}[text]
    if not text:
        assert driver.architectures(nvcc(tmp_path, "12.4", (80, 86, 90))) == "80-real;90"


def test_native_without_a_gpu_is_named(driver, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "native")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(SystemExit, match="TORCH_CUDA_ARCH_LIST is 'native', but there is no GPU"):
        driver.architectures(nvcc(tmp_path))


LISTS = [
    "8.0 9.0 10.0+PTX",
    "8.0;9.0a",
    "12.0+PTX",
    "9.0;9.0+PTX",
    "Ampere",
    "Ampere;Hopper",
    "Volta+Tegra Turing",
    "Blackwell",
]


@pytest.mark.parametrize("text", LISTS)
def test_torch_reads_the_list_of_architectures_alike(driver, monkeypatch, text):
    from torch.utils.cpp_extension import _get_cuda_arch_flags

    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", text)
    codes = {re.search(",code=(.*)", flag)[1] for flag in _get_cuda_arch_flags()}
    ours = driver.cmake_architectures(text).split(";")
    assert codes == {f"sm_{a.removesuffix('-real')}" for a in ours} | {f"compute_{a}" for a in ours if "-" not in a}


@pytest.mark.parametrize(
    ("variables", "option"),
    [
        ({"MAX_JOBS": "3", "CMAKE_BUILD_PARALLEL_LEVEL": "5"}, ["--parallel", "3"]),
        ({"CMAKE_BUILD_PARALLEL_LEVEL": "5"}, ["--parallel", "5"]),
        ({"MAX_JOBS": ""}, []),
    ],
)
def test_jobs_reach_cmake(driver, monkeypatch, variables, option):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert driver.jobs() == option


def test_a_build_without_cuda_leaves_no_cuda_library_in_the_folder(checkout, fake_cmake):
    package = checkout / "shrinknets_fast"
    for name in ("_C_cuda.so", "_C_cpu.so"):
        (package / name).write_text("old")
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    run = runs(command, checkout, SN_CUDA="0", MAX_JOBS="3", PATH=fake_cmake)
    assert run.returncode == 0, run.stderr
    assert (package / "_C_cpu.so").read_text() == "new\n" and not (package / "_C_cuda.so").exists()
    configured, built = (checkout.parent / "arguments").read_text().splitlines()
    assert "-DSN_CUDA=OFF" in configured and built.endswith("--parallel 3")


def test_a_wheel_holds_what_its_own_build_made(checkout, fake_cmake):
    """Neither what an earlier build left in the package's folder, nor in setuptools' own."""
    platform = f"lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
    for package in (checkout / "shrinknets_fast", checkout / "build" / platform / "shrinknets_fast"):
        package.mkdir(parents=True, exist_ok=True)
        for name in ("_C_cuda.so", "_C_cpu.so", "_C_else.so"):
            (package / name).write_text("old")
    python(WHEEL, checkout, SN_CUDA="0", PATH=fake_cmake)
    with zipfile.ZipFile(*(checkout / "dist").glob("*.whl")) as wheel:
        built = {Path(name).name: wheel.read(name) for name in wheel.namelist() if name.endswith((".so", ".json"))}
    assert built == {"_C_cpu.so": b"new\n", "build_info.json": b"new\n"}


def sdist(checkout):
    """The source distribution's names below its top folder, and where it is laid out."""
    python(SDIST, checkout)
    with tarfile.open(*(checkout / "dist").glob("*.tar.gz")) as archive:
        archive.extractall(checkout.parent / "sdist", filter="data")
    (top,) = (checkout.parent / "sdist").iterdir()
    return {str(path.relative_to(top)) for path in top.rglob("*") if path.is_file()}, top


def test_the_sdist_holds_all_sources_and_no_library(checkout):
    sources = {str(p.relative_to(checkout)) for p in checkout.rglob("*") if p.is_file()}
    for name in ("_C_cpu.so", "build_info.json"):
        (checkout / "shrinknets_fast" / name).write_text("old")
    (checkout / "shrinknets_fast.egg-info").mkdir()  # an older list of sources is taken over by setuptools
    (checkout / "shrinknets_fast.egg-info" / "SOURCES.txt").write_text("shrinknets_fast/_C_cpu.so\n")
    packed, _ = sdist(checkout)
    assert sources <= packed and "csrc/library.cpp" in packed and "shrinknets_fast/py.typed" in packed
    assert not [name for name in packed if name.endswith((".so", ".pyc", ".json"))]


@pytest.mark.slow
def test_a_wheel_from_the_sdist_works(checkout, tmp_path):
    _, top = sdist(checkout)
    python(WHEEL, top, SN_CUDA="0")
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    with zipfile.ZipFile(*(top / "dist").glob("*.whl")) as wheel:
        wheel.extractall(site)
    python(SMOKE, elsewhere, str(site), PYTHONPATH=str(site))
