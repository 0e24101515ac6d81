"""Tests of the tests: each fault of the tables is planted in a copy of the package, and its test file has to fail.

    python tests/mutants/run.py [-j N] [WORDS]      all, or those whose file or line has one of these words
    make mutants [JOBS=N]

N faults at a time, each in a copy of its own; 1 by default.

Prints a row for each. Exit status 1 if a fault survives that gives no reason, if one is caught that gives one, or if a line to be
changed is gone. Faults in C++ take a build without CUDA; they come last, and behind them those of the CUDA kernels, for which the
tests build what they need (tests/emulated).
"""

import argparse
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
FAULTS = ROOT / "tests/mutants/faults.toml"
EMULATED = ROOT / "tests/emulated/faults.toml"
COPIED = ("shrinknets_fast", "tests", "bench", "csrc", "pyproject.toml", "CMakeLists.txt", "setup.py")
LIMIT = 600  # seconds; a fault may make an endless loop


def main(words, jobs):
    faults = sorted(tomllib.loads(FAULTS.read_text())["fault"], key=lambda fault: fault["file"].startswith("csrc"))
    for fault in tomllib.loads(EMULATED.read_text())["fault"]:
        faults.append({"tests": "tests/test_emulated.py", **fault, "emulated": True})
    chosen = [f for f in faults if not words or any(w in f["file"] + f["old"] for w in words)]
    wrong = 0
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:
        copies = queue.SimpleQueue()
        for k in range(jobs):
            copy_to(Path(folder) / str(k))
            copies.put(Path(folder) / str(k))
        for fault, said in zip(chosen, pool.map(lambda fault: in_one(copies, fault), chosen), strict=True):
            expected = "survives" if "reason" in fault else "caught"
            wrong += said != expected
            note = fault.get("reason", "")
            old, new = (" ".join(fault[name].split()) for name in ("old", "new"))
            print(f"{said:<9} {fault['file']}: {old} -> {new}  {note}", flush=True)
    print(f"{len(chosen)} faults, {wrong} not as expected")
    return int(wrong > 0)


def in_one(copies, fault):
    folder = copies.get()
    try:
        return outcome(folder, fault)
    finally:
        copies.put(folder)


def copy_to(folder):
    folder.mkdir()
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)


def outcome(folder, fault):
    """ "caught", "survives", or what is wrong with the fault itself."""
    path = folder / fault["file"]
    text = path.read_text()
    if text.count(fault["old"]) != 1:
        return f"{text.count(fault['old'])} times"
    path.write_text(text.replace(fault["old"], fault["new"]))
    built = folder / "shrinknets_fast" / "_C_cpu.so"
    library = built.read_bytes()
    try:
        if fault["file"].startswith("csrc") and "emulated" not in fault and not builds(folder):
            return "no build"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-x",
            "-q",
            "-p",
            "no:cacheprovider",
            "-m",
            "not slow",
            *fault["tests"].split(),
        ]
        try:
            run = subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, timeout=LIMIT)
        except subprocess.TimeoutExpired:
            return "caught"
        if b"do not compile" in run.stdout:  # tests/emulated/build.py
            return "no build"
        if run.returncode < 0:  # the process died of it
            return "caught"
        return {0: "survives", 1: "caught"}.get(run.returncode, f"status {run.returncode}")
    finally:
        path.write_text(text)
        built.unlink()
        built.write_bytes(library)


def builds(folder):
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    return not subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True).returncode


def environment(folder):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**os.environ, "PYTHONPATH": str(folder), "SN_CUDA": "0", "PATH": path}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-j", "--jobs", type=int, default=1)
    parser.add_argument("words", nargs="*")
    arguments = parser.parse_args()
    if arguments.jobs < 1:
        parser.error(f"argument -j/--jobs: {arguments.jobs} is not positive")
    sys.exit(main(arguments.words, arguments.jobs))
