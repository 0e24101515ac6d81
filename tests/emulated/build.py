"""Builds the CUDA kernels for the CPU, once for each content of the sources: python tests/emulated/build.py KIND

KIND: plain; watched (every access is looked at, sizes are small: small_limits.h); asan (AddressSanitizer and UBSan); coverage.
The library is build/emulated/KIND-HASH.so of the checkout; CMake's folder stays, so that the next build compiles what changed.
"""

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent.parent.resolve()
FOLDER = ROOT / "build" / "emulated"
KINDS = ("plain", "watched", "asan", "coverage")
PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), sysconfig.get_path("scripts")])


def missing():
    """What this machine lacks, in a line, or ""."""
    if platform.machine() != "x86_64" or sys.platform != "linux":
        return f"the emulated CUDA kernels need Linux on x86-64, this is {sys.platform} on {platform.machine()}"
    lacks = [name for name in ("g++", "cmake", "ninja") if not shutil.which(name, path=PATH)]
    return f"the emulated CUDA kernels need {', '.join(lacks)}" if lacks else ""


def sources():
    """What the libraries are made of."""
    here = Path(__file__).parent
    files = [ROOT / "CMakeLists.txt", *(ROOT / "csrc").glob("*"), *(ROOT / "csrc" / "cuda").glob("*")]
    files += [p for p in here.rglob("*") if p.suffix in (".cpp", ".h", ".txt")]
    return sorted(p for p in files if p.is_file())


def fingerprint(kind):
    found = hashlib.sha256(f"{kind} {torch.__version__} {version_of_compiler()}".encode())
    for path in sources():
        found.update(f"\n{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return found.hexdigest()[:16]


def version_of_compiler():
    return subprocess.run(["g++", "-dumpfullversion"], capture_output=True, text=True, check=True).stdout.strip()


def build(kind, say=None):
    """The path of the library. Who comes while another process builds it waits for that."""
    library = FOLDER / f"{kind}-{fingerprint(kind)}.so"
    if library.exists():
        return library
    FOLDER.mkdir(parents=True, exist_ok=True)
    with open(FOLDER / f"{kind}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            compile_to(library, kind, say)
    return library


def compile_to(library, kind, say):
    folder = FOLDER / kind
    options = {
        "CMAKE_BUILD_TYPE": "None",
        "CMAKE_CXX_COMPILER": "g++",
        "CMAKE_MAKE_PROGRAM": shutil.which("ninja", path=PATH),
        "SN_EMULATED": kind,
        "SN_TORCH_DIR": Path(torch.__file__).parent,
        "SN_OUTPUT": folder / "lib",
    }
    cmake = shutil.which("cmake", path=PATH)
    flags = [f"-D{name}={value}" for name, value in options.items()]
    at_once = str(os.cpu_count() or 1)
    for command in (
        [cmake, "-S", ROOT, "-B", folder, "-G", "Ninja", *flags],
        [cmake, "--build", folder, "--parallel", at_once],
    ):
        run = subprocess.run(command, stdout=say or subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if run.returncode:
            raise RuntimeError(f"the emulated CUDA kernels ({kind}) do not compile:\n{(run.stdout or '')[-4000:]}")
    for stale in FOLDER.glob(f"{kind}-*.so"):
        stale.unlink()
    whole = library.with_suffix(".part")  # nobody may find half a library
    shutil.copy2(folder / "lib" / "emulated.so", whole)
    whole.rename(library)


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in KINDS or missing():
        sys.exit(missing() or __doc__)
    print(build(sys.argv[1], sys.stdout))
