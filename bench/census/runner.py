"""Runs the census: a process a model, with a limit of time, and a row appended as soon as it is known."""

import hashlib
import json
import multiprocessing
import os
import sys
import time
import warnings
from functools import cache
from pathlib import Path

import torch

import shrinknets_fast

from .. import rows
from ..registry import OURS, Unavailable, needed
from . import libraries, one, prepare
from .rival import torch_pruning

ROWS = rows.RESULTS / "census.jsonl"
LIMIT = 240.0
FORK = multiprocessing.get_context("fork")  # what was imported once is there


@cache
def code():
    """Twelve digits that change with this package's Python code."""
    root, digest = Path(shrinknets_fast.__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def read(path):
    """The rows of a file, oldest first; none where it is not there. A last line that was cut off is left out."""
    found = []
    for text in Path(path).read_text().splitlines() if Path(path).exists() else []:
        try:
            found.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return found


def run(chosen, *, out=ROWS, limit=LIMIT, jobs=1, again=False, say=print):
    """Rows of the models ``chosen``, [(library, name)], appended to ``out``. Those with a row of the same code are skipped."""
    done = set() if again else {(r["library"], r["case"]) for r in read(out) if r["code"] == code()}
    waiting, running, made = [pair for pair in chosen if pair not in done], [], []
    torch.set_num_threads(1)
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                started = start(*waiting.pop(0), limit, say)
                running += [started] if started else []
            for job in [job for job in running if job.is_over()]:
                running.remove(job)
                row = rows.make("census", job.name, OURS, "cpu", library=job.library, code=code(), **job.fields())
                Path(out).parent.mkdir(parents=True, exist_ok=True)
                with Path(out).open("a") as file:
                    file.write(json.dumps(row) + "\n")
                made.append(row)
                say(f"{job.library} {job.name}: {row['status']}")
            time.sleep(0.02)
    finally:
        for job in running:
            job.stop()
    return made


def start(library, name, limit, say):
    try:
        ready(library)
    except Unavailable as reason:
        say(f"{library} {name}: left out, {reason}")
        return None
    return Job(library, name, limit)


@cache
def ready(library):
    """Imports what the models need before any of them starts."""
    needed(libraries.LIBRARIES[library][1])
    one.warm_up()


class Job:
    """One model in a process of its own."""

    def __init__(self, library, name, limit):
        self.library, self.name, self.limit = library, name, limit
        self.reader, writer = FORK.Pipe(duplex=False)
        sys.stdout.flush()
        self.process = FORK.Process(target=work, args=(library, name, writer), daemon=True)
        self.process.start()
        writer.close()
        self.start, self.said = time.monotonic(), []

    def is_over(self):
        self.listen()
        if self.process.is_alive() and time.monotonic() - self.start < self.limit:
            return False
        self.stop()
        return True

    def listen(self):
        """The last of what it says counts."""
        try:
            while self.reader.poll():
                self.said.append(self.reader.recv())
        except EOFError:
            pass

    def stop(self):
        self.process.kill()
        self.process.join()
        self.listen()

    def fields(self):
        if self.said:
            return self.said[-1]
        if time.monotonic() - self.start >= self.limit:
            return {**one.EMPTY, "status": f"timeout: more than {self.limit:g} s"}
        return {**one.EMPTY, "status": f"crashed: the process ended with {self.process.exitcode}"}


def work(library, name, writer):
    """In the new process: the row without the rival's figures, then with them."""
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # before autograd's threads do: torch makes its pool anew in a fork, and two at once abort
    prepare.own_process = True
    row = one.measure(library, name)
    writer.send(row)
    try:
        rival = torch_pruning(*one.fresh(library, name), one.DEAD)
    except Exception:  # the model cannot be made, as the row says
        rival = None
    writer.send({**row, "rival": rival})
