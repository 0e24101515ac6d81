"""A thin driver of CMakeLists.txt: finds torch, pybind11 and nvcc, and runs CMake with ninja."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11
import torch
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
PACKAGE = "shrinknets_fast"
DEFAULT_ARCHITECTURES = "8.0;9.0;10.0+PTX"


def find_nvcc():
    """The CUDA compiler, or None: CUDA_HOME first, then the PATH. Never asks for a GPU."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home and (Path(home) / "bin/nvcc").exists():
        return str(Path(home) / "bin/nvcc")
    return shutil.which("nvcc") or next((str(p) for p in [Path("/usr/local/cuda/bin/nvcc")] if p.exists()), None)


def wants_cuda():
    """nvcc if the CUDA kernels are to be built, else None. SN_CUDA=0 and SN_CUDA=1 decide, where they are set."""
    choice, nvcc = os.environ.get("SN_CUDA", ""), find_nvcc()
    if choice not in ("", "0", "1"):
        raise SystemExit(f"SN_CUDA is {choice!r}, expected 0 or 1")
    lacks = "nvcc was not found" if not nvcc else "torch is a CPU build" if not torch.version.cuda else ""
    if choice == "1" and lacks:
        raise SystemExit(f"SN_CUDA=1, but {lacks}")
    if choice == "0" or lacks:
        print(f"{PACKAGE}: building the CPU library alone ({lacks or 'SN_CUDA=0'})", flush=True)
        return None
    return nvcc


def cmake_architectures(text):
    """TORCH_CUDA_ARCH_LIST ("8.0;9.0a;10.0+PTX") in CMake's notation ("80-real;90a-real;100")."""
    found = []
    for item in re.split(r"[;,\s]+", text.strip()):
        match = re.fullmatch(r"(\d+)\.(\d+)([af]?)(\+PTX)?", item)
        if not match:
            raise SystemExit(f"TORCH_CUDA_ARCH_LIST holds {item!r}, expected entries such as 9.0 or 10.0+PTX")
        major, minor, suffix, ptx = match.groups()
        found.append(f"{major}{minor}{suffix}" + ("" if ptx else "-real"))
    return ";".join(found)


class CMakeBuild(build_ext):
    """Builds all libraries at once, into the package's folder of this build (in place for an editable install)."""

    def run(self):
        output = (ROOT if self.inplace or self.editable_mode else Path(self.build_lib).resolve()) / PACKAGE
        build = ROOT / "build" / f"cmake-torch{torch.__version__}-py{sys.version_info.major}{sys.version_info.minor}"
        build.mkdir(parents=True, exist_ok=True)
        options = {
            "CMAKE_BUILD_TYPE": "Release",
            "SN_TORCH_DIR": Path(torch.__file__).parent,
            "SN_TORCH_VERSION": torch.__version__,
            "SN_OUTPUT": output,
            "SN_CUDA": "OFF",
            "Python_EXECUTABLE": sys.executable,
            "PYBIND11_FINDPYTHON": "ON",
            "pybind11_DIR": pybind11.get_cmake_dir(),
        }
        nvcc = wants_cuda()
        if nvcc:
            options["SN_CUDA"] = "ON"
            options["CMAKE_CUDA_COMPILER"] = nvcc
            options["SN_ARCHITECTURES"] = cmake_architectures(
                os.environ.get("TORCH_CUDA_ARCH_LIST") or DEFAULT_ARCHITECTURES
            )
        flags = [f"-D{name}={value}" for name, value in options.items()]
        subprocess.run(["cmake", "-S", ROOT, "-B", build, "-G", "Ninja", *flags], check=True)
        subprocess.run(["cmake", "--build", build], check=True)

    def get_outputs(self):
        return []


setup(ext_modules=[Extension(f"{PACKAGE}._C_cpu", sources=[])], cmdclass={"build_ext": CMakeBuild})
