"""Random calls of the emulated CUDA kernels, in random schedules: python tests/emulated/fuzz.py KIND --first SEED --cases N

The last line is JSON: cases of each op, failures as [op, seed], counters. A failure comes again by --first SEED --cases 1.
"""

import argparse
import json
import sys
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch  # noqa: E402
from emulated.cases import OPS  # noqa: E402
from emulated.library import COUNTERS, Library  # noqa: E402
from emulated.tensors import Case  # noqa: E402


def main(argv):
    parser = argparse.ArgumentParser()
    parser.add_argument("kind")
    parser.add_argument("--ops", default=",".join(OPS))
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--cases", type=int, default=100, help="of each op")
    parser.add_argument("--seconds", type=float, default=1e9)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    library = Library(args.kind)
    if library.watched:
        library.install_allocator()
    done, failures, total, start = (
        dict.fromkeys(args.ops.split(","), 0),
        [],
        dict.fromkeys(COUNTERS, 0),
        time.monotonic(),
    )
    for seed in range(args.first, args.first + args.cases):
        for name in done:
            if time.monotonic() - start > args.seconds or len(failures) >= 5:
                break
            print(f"\r{name} {seed} ", end="", file=sys.stderr, flush=True)  # what a crash leaves
            if not one(name, seed, library, total):
                failures.append([name, seed])
            done[name] += 1
    found = {"kind": args.kind, "cases": done, "failures": failures, "seconds": round(time.process_time(), 1), **total}
    print(f"\n{json.dumps(found)}")
    return int(bool(failures))


def one(name, seed, library, total):
    case = Case(seed, library)
    before = library.counters()
    library.random_schedule(case.draw, seed)
    try:
        OPS[name](case)
        case.done()
        return True
    except Exception:
        print(f"FAILED {name} {seed}\n{traceback.format_exc()}", flush=True)
        return False
    finally:
        case.end()
        after = library.counters()
        for key in COUNTERS:
            total[key] += after[key] - (0 if key == "launches" else before[key])  # launches start anew with a schedule


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
