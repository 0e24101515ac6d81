"""A driver of CMakeLists.txt: reads the environment, finds torch, nvcc and the tools, and runs CMake with ninja.

It reads SN_CUDA, CUDA_HOME, TORCH_CUDA_ARCH_LIST, CXX, MAX_JOBS and CMAKE_BUILD_PARALLEL_LEVEL. What is wrong or missing is said
in one line before CMake starts; torch is imported for a build only, so that a source distribution needs setuptools alone.
"""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
PACKAGE = "shrinknets_fast"
CPU_ALONE = "SN_CUDA=0 builds the CPU library alone"
DEFAULT_ARCHITECTURES = ("8.0", "9.0", "10.0")
NAMED_ARCHITECTURES = {  # torch.utils.cpp_extension's
    "Volta": "7.0+PTX",
    "Volta+Tegra": "7.2",
    "Turing": "7.5+PTX",
    "Ampere": "8.0;8.6+PTX",
    "Ampere+Tegra": "8.7",
    "Ada": "8.9+PTX",
    "Hopper": "9.0+PTX",
    "Blackwell": "10.0;10.3;12.0;12.1+PTX",
    "Blackwell+Tegra": "11.0",
    "Rubin": "10.7+PTX",
}


def build_tools():
    """The paths of cmake and ninja: the PATH's, else those that pip put beside this Python. Names all that is missing at once."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), sysconfig.get_path("scripts")])
    tools = [shutil.which(name, path=path) for name in ("cmake", "ninja")]
    missing = [f"{name} (pip install {name})" for name, tool in zip(("cmake", "ninja"), tools, strict=True) if not tool]
    if importlib.util.find_spec("torch") is None:
        missing.append("torch (pip install 'torch>=2.11')")
    compiler = os.environ.get("CXX", "").strip()
    if compiler and not shutil.which(shlex.split(compiler)[0]):
        raise SystemExit(f"CXX is {compiler!r}, but there is no such program")
    if not compiler and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        missing.append("a C++ compiler (g++ or clang++, or CXX to name one)")
    if missing:
        raise SystemExit(f"{PACKAGE} cannot be built, missing: {', '.join(missing)}")
    return tools


def cuda_home():
    """The variable that names a CUDA toolkit and its value, or None."""
    return next(((name, os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)), None)


def find_nvcc():
    """The CUDA compiler or None: CUDA_HOME's where that is set, else the PATH's. Never asks for a GPU."""
    if cuda_home():
        name, home = cuda_home()
        nvcc = Path(home) / "bin/nvcc"
        if not nvcc.exists():
            raise SystemExit(f"{name} is {home!r}, but {nvcc} does not exist; {CPU_ALONE}")
        return str(nvcc)
    return shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")


def ask(nvcc, *arguments):
    return subprocess.run([nvcc, *arguments], capture_output=True, text=True, check=True).stdout


def wants_cuda(torch_cuda):
    """nvcc if the CUDA kernels are to be built for a torch of this CUDA version, else None.

    SN_CUDA decides where it is set. Without it a nvcc that does not fit is an error where CUDA_HOME names it, else left alone.
    """
    choice, nvcc = os.environ.get("SN_CUDA", ""), None
    if choice not in ("", "0", "1"):
        raise SystemExit(f"SN_CUDA is {choice!r}, expected 0 or 1")
    if choice == "0":
        lacks = "SN_CUDA=0"
    elif not torch_cuda:
        lacks = "torch is a CPU build"
    else:
        nvcc = find_nvcc()
        lacks = misfit(nvcc, torch_cuda) if nvcc else "nvcc was not found"
    if lacks and choice == "1":
        raise SystemExit(f"SN_CUDA=1, but {lacks}")
    if lacks and nvcc and cuda_home():
        raise SystemExit(f"{cuda_home()[0]}'s {lacks}; {CPU_ALONE}")
    if lacks:
        print(f"{PACKAGE}: building the CPU library alone ({lacks})", flush=True)
        return None
    return nvcc


def misfit(nvcc, torch_cuda):
    """Why this nvcc cannot serve torch, or "": the library runs on torch's own CUDA runtime, a file of its major version."""
    found = re.search(r"release (\d+\.\d+)", ask(nvcc, "--version"))
    version = found[1] if found else "of no version that it tells"
    if version.split(".")[0] == torch_cuda.split(".")[0]:
        return ""
    return f"{nvcc} is {version}, but torch was built with CUDA {torch_cuda}"


def architectures(nvcc):
    """What to compile for, in CMake's notation: TORCH_CUDA_ARCH_LIST, else the defaults that nvcc knows."""
    known = {f"{n[:-1]}.{n[-1]}" for n in re.findall(r"compute_(\d+)", ask(nvcc, "--list-gpu-arch"))}
    text = os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip()
    if not text:
        text = ";".join(a for a in DEFAULT_ARCHITECTURES if a in known) + "+PTX"
    elif text == "native":
        text = native_architectures()
    for item in parsed_architectures(text):
        number = re.match(r"\d+\.\d+", item)[0]
        if number not in known:
            expected = ", ".join(sorted(known, key=float))
            raise SystemExit(
                f"TORCH_CUDA_ARCH_LIST is {text!r}, but {nvcc} does not compile for {number}, only for {expected}"
            )
    return cmake_architectures(text)


def native_architectures():
    """Of the GPUs in this machine, and PTX of the newest of them: as torch has it."""
    import torch

    found = sorted({torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())})
    if not found:
        raise SystemExit(
            "TORCH_CUDA_ARCH_LIST is 'native', but there is no GPU; expected numbers such as 9.0 or 10.0+PTX"
        )
    return ";".join(f"{major}.{minor}" for major, minor in found) + "+PTX"


def parsed_architectures(text):
    """The numbers ("9.0a", "10.0+PTX") in ``text`` in torch's notation, which has names too and any separator."""
    found = []
    for item in filter(None, re.split(r"[;,\s]+", text)):
        for number in NAMED_ARCHITECTURES.get(item, item).split(";"):
            if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", number):
                names = ", ".join(name for name in NAMED_ARCHITECTURES if "+" not in name)
                raise SystemExit(
                    f"TORCH_CUDA_ARCH_LIST holds {item!r}, expected 9.0, 9.0a, 10.0+PTX, native or one of {names}"
                )
            found.append(number)
    return found


def cmake_architectures(text):
    """torch's notation ("8.0;9.0a;10.0+PTX") in CMake's ("80-real;90a-real;100")."""
    found = {}
    for item in parsed_architectures(text):
        number = item.removesuffix("+PTX").replace(".", "")
        found[number] = found.get(number, False) or item.endswith("+PTX")
    return ";".join(number + ("" if ptx else "-real") for number, ptx in found.items())


def jobs():
    """CMake's option of how many compilers run at once, or ninja's own choice. MAX_JOBS goes first, as for torch's extensions."""
    for name in ("MAX_JOBS", "CMAKE_BUILD_PARALLEL_LEVEL"):
        value = os.environ.get(name, "").strip()
        if value:
            if not re.fullmatch(r"0*[1-9]\d*", value):
                raise SystemExit(f"{name} is {value!r}, expected a whole number of 1 or more")
            return ["--parallel", str(int(value))]
    return []


class CMakeBuild(build_ext):
    """Builds all libraries at once, and puts them into the package's folder of this build (in place for an editable install)."""

    def run(self):
        cmake, ninja = build_tools()
        import torch

        build = ROOT / "build" / f"cmake-torch{torch.__version__}"
        build.mkdir(parents=True, exist_ok=True)
        built = build / "lib"
        options = {
            "CMAKE_BUILD_TYPE": "Release",
            "CMAKE_MAKE_PROGRAM": ninja,  # an isolated build's is gone at the next one
            "SN_TORCH_DIR": Path(torch.__file__).parent,
            "SN_TORCH_VERSION": torch.__version__,
            "SN_OUTPUT": built,
            "SN_CUDA": "OFF",
        }
        files = ["_C_cpu.so", "build_info.json"]
        nvcc = wants_cuda(torch.version.cuda)
        if nvcc:
            options["SN_CUDA"] = "ON"
            options["CMAKE_CUDA_COMPILER"] = nvcc
            options["SN_ARCHITECTURES"] = architectures(nvcc)
            files.append("_C_cuda.so")
        flags = [f"-D{name}={value}" for name, value in options.items()]
        parallel = jobs()
        subprocess.run([cmake, "-S", ROOT, "-B", build, "-G", "Ninja", *flags], check=True)
        subprocess.run([cmake, "--build", build, *parallel], check=True)
        place(files, built, (ROOT if self.inplace or self.editable_mode else Path(self.build_lib)) / PACKAGE)

    def get_outputs(self):
        return []


def place(files, built, package):
    """Copies what this build made, and removes what an earlier one left: its _C_cuda.so would be loaded."""
    package.mkdir(parents=True, exist_ok=True)
    for stale in {*package.glob("_C_*.so"), *(package / name for name in files)}:
        stale.unlink(missing_ok=True)  # not written over: a process may run it
    for name in files:
        shutil.copy2(built / name, package)


# The libraries know nothing of Python, so a wheel is for this and every later one.
setup(
    ext_modules=[Extension(f"{PACKAGE}._C_cpu", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
