"""The CUDA kernels on the CPU (tests/emulated): random calls in random schedules, what is watched, what they refuse.

That they give what the CPU's kernels give is in test_fold.py, test_filter.py and so on, whose `device` is also "emulated".
"""

import json
import mmap
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import emulated
from emulated import build

import shrinknets_fast as sn
from shrinknets_fast import reference
from shrinknets_fast.ops.compact import compact_, fill

FOLDER = Path(build.__file__).parent
FUZZ = FOLDER / "fuzz.py"
NO_RESERVE = 0x4000  # of mmap: pages that nobody touches cost nothing


@pytest.fixture
def library():
    emulated().schedule()
    return emulated()


def fuzz(kind, *arguments):
    """A process of its own: a fault may end it, the watcher takes torch's allocator, and a process loads one kind."""
    if build.missing():
        pytest.skip(build.missing())
    env = dict(os.environ)
    if kind == "asan":
        runtime = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
        env |= {"LD_PRELOAD": runtime.stdout.strip(), "ASAN_OPTIONS": "detect_leaks=0"}
    build.build(kind)
    run = subprocess.run([sys.executable, FUZZ, kind, *map(str, arguments)], env=env, capture_output=True, text=True)
    assert run.returncode == 0, f"{kind}: status {run.returncode}\n{run.stdout[-4000:]}\n{run.stderr[-4000:]}"
    found = json.loads(run.stdout.splitlines()[-1])
    print(found)
    for name in ("barriers", "exchanges", "copies", "atomics", "preemptions", *(["sleeps"] if kind != "asan" else [])):
        assert found[name] > 0, f"no {name}: these cases prove little"
    return found


@pytest.mark.parametrize(("kind", "cases"), [("watched", 800), ("plain", 30)])
def test_random_calls_in_random_schedules(kind, cases):
    found = fuzz(kind, "--cases", cases)
    assert set(found["cases"].values()) == {cases} and (found["accesses"] > 1_000_000 or kind != "watched")


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "seconds"), [("watched", 120), ("plain", 120), ("asan", 240)])
def test_random_calls_from_a_new_seed(kind, seconds):
    first = int(time.time())
    print(f"seed {first}")
    found = fuzz(kind, "--first", first, "--cases", 10_000_000, "--seconds", seconds)
    assert min(found["cases"].values()) > 20, found


SCHEDULES = {
    "one tile after the other": {},
    "blocks from the last one on": {"order": "descending", "policy": "random", "resident": 8},
    "the lowest tiles starve": {"policy": "starved", "resident": 8},
    "stopped wherever others may come in": {"policy": "random", "resident": 8, "preempt": 1},
    "stopped now and then": {"policy": "priorities", "resident": 5, "preempt": 7, "freeze": 20},
    "starved and stopped for long": {"policy": "starved", "resident": 8, "preempt": 5, "freeze": 3},
    "copies late": {"policy": "random", "resident": 4, "lazy": 1},
    "copies early": {"policy": "starved", "resident": 4, "lazy": 0, "preempt": 3},
}


@pytest.mark.parametrize("words", SCHEDULES)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32, torch.float64, torch.complex128], ids=str)
def test_tiles_in_any_order(words, dtype, library):
    rows = 1 + 150_000 // (300 * dtype.itemsize)
    keep = {0: (torch.rand(rows) > 0.1).nonzero().flatten(), 1: (torch.rand(301) > 0.05).nonzero().flatten()}
    filling = {d: fill(kept, n) for (d, kept), n in zip(keep.items(), (rows, 301), strict=True)}
    for seed, kept in enumerate((keep, {1: keep[1]}, {0: keep[0]}, filling, {1: filling[1]}, {0: filling[0]})):
        tensor = torch.randint(0, 250, (rows, 301)).to(dtype)
        expected = reference.compact(tensor, kept)
        library.schedule(seed, **SCHEDULES[words])
        with library.routed():
            compact_([(tensor, kept)])
        assert torch.equal(tensor, expected), seed
        assert library.counters()["blocks"] > 0


def test_tiles_wait_for_each_other(library):
    """What the schedules above are for: there is somebody to wait for."""
    tensor, kept = torch.randn(2000, 100), torch.arange(1, 2000)
    before = library.counters()["sleeps"]
    library.schedule(policy="starved", resident=8)
    with library.routed():
        compact_([(tensor, {0: kept})])
    assert library.counters()["sleeps"] > before + 100


def sparse(count, dtype):
    memory = mmap.mmap(-1, count * dtype.itemsize, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE)
    return torch.frombuffer(memory, dtype=dtype)


def test_offsets_of_64_bits_in_compact(library):
    """A fill of rows moves few of them; the others are never touched. 4101 bytes a row: words of one byte."""
    rows, width = 2**20, 4101
    tensor = sparse(rows * width, torch.uint8).view(rows, width)
    kept = torch.arange(rows - 3)
    kept[5], kept[600_000] = rows - 3, rows - 1
    moved = {5: torch.randint(0, 250, (width,)), 600_000: torch.randint(0, 250, (width,))}
    for to, row in moved.items():
        tensor[kept[to]] = row.to(torch.uint8)
    with library.routed():
        compact_([(tensor, {0: kept})])
    assert all(torch.equal(tensor[to], row.to(torch.uint8)) for to, row in moved.items())


def test_offsets_of_64_bits_in_fold(library):
    shape, strides = (3, 5), (2**30 + 10, 2**29 + 1)  # of rows and within one
    count = 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    assert count > 2**32
    weight, grad = (sparse(count, torch.float16).as_strided(shape, strides).copy_(torch.randn(shape)) for _ in range(2))
    theta = torch.tensor([1.0, -1, 2])
    with library.routed():
        out = torch.ops.shrinknets_fast.fold(weight, None, theta)[0]
        dweight, _, dtheta = torch.ops.shrinknets_fast.fold_backward(grad, None, weight, None, theta)
    exact = reference.fold_backward(grad.double(), None, weight.double(), None, theta.double())
    torch.testing.assert_close(
        out.double(), reference.fold(weight.double(), None, theta.double())[0], rtol=1e-3, atol=0
    )
    torch.testing.assert_close(dweight.double(), exact[0], rtol=1e-3, atol=0)
    torch.testing.assert_close(dtheta.double(), exact[2], rtol=1e-5, atol=1e-5)


def test_training_and_a_collection(library):
    """All ops in one go, and the network that is left computes what it did."""
    layers = (
        sn.FilteredConv2d(3, 13, 3, activation="relu"),
        torch.nn.Conv2d(13, 19, 3),
        sn.Filter(19),
        torch.nn.Flatten(),
    )
    model = torch.nn.Sequential(*layers, torch.nn.Linear(19 * 4 * 4, 2)).double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    before = library.counters()["blocks"]
    with library.routed():
        gc = sn.GarbageCollector(model, x, optimizers=optimizer)
        model(x).square().sum().backward()
        optimizer.step()
        with torch.no_grad():
            model[0].theta[[0, 4, 12]] = 0
            model[2].theta[5:] = -1
        expected = model(x)
        gc.collect()
        torch.testing.assert_close(model(x), expected)
        model(x).square().sum().backward()
        optimizer.step()
    assert model[0].out_channels == 10 and model[4].in_features == 5 * 16
    assert library.counters()["blocks"] > before + 20


def test_a_captured_stream_is_refused_before_a_byte_moves(library):
    tensor = torch.randn(6, 4)
    before = tensor.clone()
    with library.routed(), library.capturing(), pytest.raises(RuntimeError, match="compact_: the stream is captured"):
        compact_([(tensor, {0: torch.tensor([0, 2])})])
    assert torch.equal(tensor, before)


@pytest.mark.parametrize(
    "shape", [(1, 4096, 31), (1, 4096, 17), (2, 4096, 3, 3), (4, 9000, 1), (3, 2048, 4, 8)], ids=str
)
def test_memory_for_a_sum_is_that_of_a_few_features(shape, library):
    """filter_backward adds up within the block first; its scratch used to be as large as x in float32."""
    x, theta = torch.randn(shape, dtype=torch.bfloat16), torch.randn(shape[1])
    with library.routed(), torch.profiler.profile(profile_memory=True) as profile:
        torch.ops.shrinknets_fast.filter_backward(x, x, theta)
    given = sum(event.cpu_memory_usage for event in profile.events() if event.name == "aten::new_empty")
    assert 2 * 4 * shape[1] <= given <= 3 * 4 * shape[1]  # dtheta, and one share of each feature


def test_more_copies_of_a_theta_than_a_launch_takes_are_refused(library):
    thetas = [torch.ones(1)] * 801
    with library.routed(), pytest.raises(RuntimeError, match="aliveness: group 0 has more than 800 thetas"):
        torch.ops.shrinknets_fast.aliveness(thetas, [0] * 801)


@pytest.mark.parametrize("arch", ["750", "800"])
def test_older_gpus_are_refused_by_the_compiler(arch):
    if build.missing():
        pytest.skip(build.missing())
    header, fakes = build.ROOT / "csrc/cuda/ptx.cuh", FOLDER / "include"
    command = ["g++", "-std=c++17", "-fsyntax-only", "-x", "c++", f"-D__CUDA_ARCH__={arch}", f"-I{fakes}", header]
    run = subprocess.run(command, capture_output=True, text=True)
    assert bool(run.returncode) == (arch == "750")
    assert not run.returncode or re.search(r"#error .*needs compute capability 8\.0 or newer", run.stderr)


def test_what_a_machine_lacks_is_named(monkeypatch):
    monkeypatch.setattr(build, "PATH", "/nowhere")
    assert build.missing() == "the emulated CUDA kernels need g++, cmake, ninja"
    monkeypatch.setattr(build.platform, "machine", lambda: "aarch64")
    assert build.missing() == "the emulated CUDA kernels need Linux on x86-64, this is linux on aarch64"


def test_a_change_of_a_source_is_another_library():
    if build.missing():
        pytest.skip(build.missing())
    names = {path.name for path in build.sources()}
    assert {"CMakeLists.txt", "compact.cu", "ptx.cuh", "tiles.h", "scheduler.cpp", "cuda_runtime.h"} <= names
    assert "runs.h" not in names, "the kernels for the CPU are no part of it"
    assert build.fingerprint("plain") != build.fingerprint("watched")
