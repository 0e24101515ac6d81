"""Two processes that train together, started for a test and gone at its end, whatever they wait for."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
import traceback
from pathlib import Path

HERE = Path(__file__).parent


def run_ranks(cases, folder, timeout, world=2, **options):
    """Run the functions of the rank_*.py with these names, one after the other, in ``world`` processes.

    Returns {case: [outcome of each rank]}; an outcome is what the function returned, or the :class:`Raised`. Processes that are
    not through after ``timeout`` seconds are killed; what they did not get to is missing.
    """
    folder.mkdir(exist_ok=True)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(HERE.parent), *sys.path])}
    command = [sys.executable, str(Path(__file__)), str(folder), str(world), pickle.dumps(options).hex(), *cases]
    logs = [open(folder / f"log{rank}", "wb") for rank in range(world)]
    ranks = [
        subprocess.Popen(command, env={**env, "RANK": str(rank)}, stdout=log, stderr=subprocess.STDOUT)
        for rank, log in enumerate(logs)
    ]
    start = time.monotonic()
    end = start + timeout
    try:
        for process in ranks:
            process.wait(max(end - time.monotonic(), 0.1))
    except subprocess.TimeoutExpired:
        pass
    finally:
        for process in ranks:
            process.kill()
            process.wait()
        for log in logs:
            log.close()
    found = {case: [outcome(folder, case, rank) for rank in range(world)] for case in cases}
    said = "\n".join((folder / f"log{rank}").read_text(errors="replace")[-1500:] for rank in range(world))
    return {case: Outcomes(outcomes, said, time.monotonic() - start) for case, outcomes in found.items()}


def run_once(cases, folder, timeout):
    """As :func:`run_ranks`, by the first that asks for this folder; others, in other processes, wait for what it finds."""
    done = folder.with_suffix(".found")
    try:
        folder.mkdir()
    except FileExistsError:
        end = time.monotonic() + timeout + 30
        while not done.exists():
            assert time.monotonic() < end, f"{folder}: nothing was found"
            time.sleep(0.2)
        return pickle.loads(done.read_bytes())
    found = run_ranks(cases, folder, timeout)
    part = folder.with_suffix(".part")
    part.write_bytes(pickle.dumps(found))
    part.rename(done)
    return found


class Outcomes(list):
    """Of each rank; None where it did not get to it. ``said``: the ends of what the processes printed; ``seconds``: of all."""

    def __init__(self, outcomes, said, seconds):
        super().__init__(outcomes)
        self.said, self.seconds = said, seconds

    def __reduce__(self):
        return Outcomes, (list(self), self.said, self.seconds)

    def good(self):
        """Those of a case that raised nothing."""
        for rank, found in enumerate(self):
            assert found is not None, f"rank {rank} did not get to it: {self.said}"
            assert not isinstance(found, Raised), found.trace
        return list(self)


class Raised:
    def __init__(self, error):
        self.kind, self.text, self.trace = type(error).__name__, str(error), traceback.format_exc()

    def __repr__(self):
        return f"{self.kind}: {self.text}"


def outcome(folder, case, rank):
    path = folder / f"{case}.{rank}"
    return pickle.loads(path.read_bytes()) if path.exists() else None


def main(folder, world, options, *cases):
    import datetime

    import rank_exact
    import rank_faults
    import rank_shard_faults
    import rank_shard_states
    import rank_sharded
    import torch
    from torch import distributed

    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    store = distributed.FileStore(f"{folder}/store", int(world))
    limit = datetime.timedelta(seconds=30)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=int(world), timeout=limit)
    for case in cases:
        try:
            module = next(
                (m for m in (rank_exact, rank_sharded, rank_shard_states, rank_shard_faults) if hasattr(m, case)),
                rank_faults,
            )
            found = getattr(module, case)(**pickle.loads(bytes.fromhex(options)))
        except Exception as error:
            found = Raised(error)
        part = Path(folder, f"{case}.{rank}.part")
        part.write_bytes(pickle.dumps(found))
        part.rename(Path(folder, f"{case}.{rank}"))
        if os.environ.get("SHOW_CASES"):
            print(case, time.strftime("%X"), repr(found)[:300], flush=True)
    os._exit(0)  # a group of which a rank has died waits for it


if __name__ == "__main__":
    import ranks  # what is pickled is named as the test names it

    ranks.main(*sys.argv[1:])
