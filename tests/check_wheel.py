"""Installs a wheel beside several versions of torch, each in an environment of its own, and runs the build's smoke test there.

    python tests/check_wheel.py dist/*.whl [REQUIREMENT ...]        such as torch==2.11.0 or torch==2.13.0+cpu

Without requirements: the oldest and the newest torch of pyproject.toml's table. A line for each; exit status 1 if one failed.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

from building import ROOT, SMOKE

REPORT = """
print(torch.__version__, "with CUDA" if torch.version.cuda else "without CUDA", *sn._library.LOADED)
"""


def tested():
    rows = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["shrinknets_fast"]["tested"]
    return [f"torch=={rows[-1]['torch']}", f"torch=={rows[0]['torch']}"]


def check(wheel, requirement):
    """What the smoke test printed, or the last line of what went wrong; and whether it passed."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(Path(folder) / "venv", with_pip=True)
        python = str(Path(folder) / "venv" / "bin" / "python")
        pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "-q"]
        env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        for command in (
            [*pip, requirement, "numpy"],
            [*pip, "--no-deps", str(wheel)],
            [python, "-W", "error::RuntimeWarning", "-c", SMOKE + REPORT, folder],
        ):
            run = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=env)
            said = (run.stdout if run.returncode == 0 else run.stderr).strip().splitlines() or [""]
            if run.returncode:
                return said[-1], False
        return said[-1], True


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("wheel", type=lambda text: Path(text).resolve(strict=True))
    parser.add_argument("requirements", nargs="*", default=tested())
    arguments = parser.parse_args()
    if "-cp311-abi3-" not in arguments.wheel.name:
        parser.error(f"wheel is {arguments.wheel.name}, expected one tagged cp311-abi3")
    failed = 0
    for requirement in arguments.requirements:
        said, good = check(arguments.wheel, requirement)
        failed += not good
        print(f"{'ok' if good else 'FAILED':<7} {requirement}: {said}", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
