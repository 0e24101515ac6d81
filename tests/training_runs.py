"""Runs of ``train`` in processes that can be killed, and what they leave. A server has imported everything and forks."""

import functools
import json
import multiprocessing
import os
import signal
import socket
import sys
import zipfile

import torch
from test_resume import assert_same

MODULES = [
    "shrinknets_fast.training.command",
    "sklearn.datasets",
    "sklearn.model_selection",
    "matplotlib.figure",
    "tqdm",
]
QUICK = ["--width", "24", "--epochs", "4", "--batch-size", "64", "--lr", "1e-2", "--lam", "2e-2", "--save-every", "5"]
FILES = ["history.jsonl", "history.png", "last.pt", "plain.pt2", "summary.json"]


@functools.cache
def server():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(MODULES)
    return context


def started(folder, *options, kill_at=None, variables=()):
    """A process that trains into ``folder``; kill_at: its n-th touch of a file is its last. variables: of its environment."""
    process = server().Process(target=train, args=(str(folder), options, kill_at, variables), daemon=True)
    process.start()
    return process


def finished(folder, *options, kill_at=None, variables=()):
    """The exit status, -9 if it was killed, and what it has said."""
    process = started(folder, *options, kill_at=kill_at, variables=variables)
    process.join(120)
    if process.exitcode is None:
        process.kill()
    log = f"{folder}.log{dict(variables).get('RANK', '')}"
    return process.exitcode, open(log).read() if os.path.exists(log) else ""


def ranks_started(folder, *options, world=2):
    """As torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world)}
    ranks = [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]
    return [started(folder, *options, variables=rank) for rank in ranks]


def ranks_finished(folder, *options, world=2):
    """[(exit status, what it has said) of each rank]"""
    return ended(folder, ranks_started(folder, *options, world=world))


def ended(folder, processes):
    found = []
    for rank, process in enumerate(processes):
        process.join(60)
        process.kill()
        process.join()
        found.append((process.exitcode, open(f"{folder}.log{rank}").read()))
    return found


def train(folder, options, kill_at, variables):
    os.environ.update(variables)
    with open(f"{folder}.log{os.environ.get('RANK', '')}", "w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        torch.set_num_threads(1)
        if kill_at is not None:
            count_down(kill_at)
        from shrinknets_fast.__main__ import main

        status = main(["train", *QUICK, *options, "--out", folder])
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def count_down(left):
    """Before a file is synced, before and after it takes its place, before one goes."""
    from pathlib import Path

    touches = iter(range(left))

    def touched(real, *moments):
        def call(*args, **options):
            for moment in moments:
                result = real(*args, **options) if moment == "do" else next(touches, None)
                if result is None and moment == "touch":
                    os.kill(os.getpid(), signal.SIGKILL)

        return call

    os.fsync = touched(os.fsync, "touch", "do")
    os.replace = touched(os.replace, "touch", "do", "touch")
    Path.unlink = touched(Path.unlink, "touch", "do")


def check_whole(folder):
    """Every file is absent or complete, and what is being written has a hidden name."""
    if not folder.exists():
        return
    names = [path.name for path in folder.iterdir() if not (path.name.startswith(".") and path.name.endswith(".part"))]
    assert set(names) <= set(FILES), names
    for name in names:
        path = folder / name
        if name.endswith((".pt", ".pt2")):
            with zipfile.ZipFile(path) as archive:
                assert archive.testzip() is None
        elif name == "history.png":
            assert path.read_bytes().endswith(b"IEND\xaeB`\x82")
        elif name == "summary.json":
            assert json.loads(path.read_text())["steps"]
        else:
            assert not (text := path.read_text()) or text.endswith("\n") and rows_of(folder)
    if "last.pt" in names:
        torch.load(folder / "last.pt", weights_only=True)
    if "summary.json" in names:
        assert set(names) == set(FILES)


def rows_of(folder):
    return [timeless(json.loads(line)) for line in (folder / "history.jsonl").read_text().splitlines()]


def timeless(row):
    return {name: value for name, value in row.items() if name not in ("seconds", "milliseconds", "latency_ms")}


def state_of(folder):
    """last.pt, but for times and the folder's name."""
    state = timeless(torch.load(folder / "last.pt", weights_only=True))
    state["history"]["rows"] = [timeless(row) for row in state["history"]["rows"]]
    del state["arguments"]["out"]
    return state


def assert_same_end(folder, other):
    """Bit for bit, but for times."""
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert_same(state_of(folder), state_of(other))
    assert_same(rows_of(folder), rows_of(other))
    summaries = [timeless(json.loads((one / "summary.json").read_text())) for one in (folder, other)]
    for summary in summaries:
        del summary["arguments"]["out"]
    assert_same(*summaries)
    one, two = (torch.export.load(one / "plain.pt2").state_dict for one in (folder, other))
    assert_same({**one}, {**two})
