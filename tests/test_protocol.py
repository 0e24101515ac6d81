"""The protocol between compact_'s tiles, as a model in random order and with delays: race checkers do not see global memory."""

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent / "protocol" / "model.cpp"
COMPILER = shutil.which("g++") or shutil.which("c++")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Runs the model; it uses csrc/tiles.h, the arithmetic of the kernels."""
    if COMPILER is None:
        pytest.skip("needs a C++ compiler")
    program = tmp_path_factory.mktemp("protocol") / "model"
    subprocess.run([COMPILER, "-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", SOURCE, "-o", program], check=True)

    def run(runs, seed, waits):
        done = subprocess.run([program, str(runs), str(seed), waits], check=True, capture_output=True, text=True)
        return dict(zip(("runs", "wrong", "stuck", "waited"), map(int, done.stdout.split()), strict=True))

    return run


def test_waiting_for_every_overlapping_tile_is_right(model):
    found = model(200_000, 1, "all")
    assert found["waited"] > 200_000, "tiles that never wait prove nothing"
    assert (found["runs"], found["wrong"], found["stuck"]) == (200_000, 0, 0)


def test_waiting_for_the_predecessor_alone_is_a_race_that_this_model_sees(model):
    assert model(20_000, 1, "predecessor")["wrong"] > 100
