"""Where one path of a linear layer overtakes another, measured, as a patch of dispatch.py: python -m bench.crossover

For each power of two that the constant could be, what would be lost: the mean, over all sizes and dtypes, of the logarithm of the
time of the path that it would choose over the time of the faster one. The least loss wins; of equal ones the nearest to today's.
"""

import argparse
import difflib
import math
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

import shrinknets_fast as sn
from shrinknets_fast import dispatch

from .registry import Provider
from .timing import Effort, measure

FILE = Path(dispatch.__file__)


@dataclass(frozen=True)
class Bound:
    """Up to ``name`` of ``size``(rows, columns, features) the path ``below`` is taken, else ``above``. shapes: to be timed."""

    name: str
    below: str
    above: str
    dtypes: tuple
    shapes: tuple
    size: object


BOUNDS = {
    "cuda": Bound(
        "LAUNCH_BOUND",
        "triton",
        "fold",
        (torch.float32, torch.bfloat16),
        tuple((2**a, 2**b, 2**b) for k in range(18, 37, 2) for a in (5, 8, 12) if 5 <= (b := (k - a) // 2) <= 13),
        math.prod,
    ),
    "cpu": Bound(
        "CALL_BOUND",
        "fold",
        "epilogue",
        (torch.float32,),
        tuple((max(2, 2**b // 4), 2**b, 2**b) for b in range(4, 12)),  # fewer rows than columns
        lambda shape: shape[1] * shape[2],
    ),
}


def timed(bound, device, shape, dtype, effort):
    """{path: milliseconds} of forward and backward."""
    rows, columns, features = shape
    x = torch.randn(rows, columns, device=device, dtype=dtype, requires_grad=True)
    grad = torch.randn(rows, features, device=device, dtype=dtype)
    providers = {}
    for path in (bound.below, bound.above):
        layer = sn.FilteredLinear(columns, features, device=device, dtype=dtype)
        layer.path = path
        wanted = [x, *layer.parameters()]
        providers[path] = Provider(lambda _, f=layer, w=wanted: torch.autograd.grad(f(x), w, grad))
    return {path: timing.row()["median_ms"] for path, timing in measure(providers, device, effort).items()}


def loss(bound, value, rows):
    """rows: [(shape, {path: milliseconds})]"""
    chosen = [
        times[bound.below if bound.size(shape) <= value else bound.above] / min(times.values()) for shape, times in rows
    ]
    return sum(map(math.log, chosen)) / len(chosen)


def best(bound, rows, today):
    """(value, what is lost with it): the power of two with the least loss."""
    sizes = [bound.size(shape) for shape, _ in rows]
    candidates = [2**k for k in range(int(math.log2(min(sizes))) - 1, int(math.log2(max(sizes))) + 2)]
    losses = {value: loss(bound, value, rows) for value in candidates}
    least = min(losses.values())
    good = [value for value in candidates if losses[value] <= least + 1e-3]
    value = min(good, key=lambda value: abs(math.log2(value / today)))
    return value, losses[value]


def patch(name, value):
    """A unified diff of dispatch.py, empty where it has the value."""
    old = FILE.read_text()
    new = re.sub(rf"(?m)^{name} = .*$", f"{name} = 2**{int(math.log2(value))}", old)
    names = (f"{side}/shrinknets_fast/{FILE.name}" for side in "ab")
    return "".join(difflib.unified_diff(old.splitlines(True), new.splitlines(True), *names, n=0))


def main():
    parser = argparse.ArgumentParser(prog="python -m bench.crossover", description=__doc__.split("\n")[0])
    parser.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--budget", type=float, default=60, metavar="SECONDS", help="time no further size after it")
    parser.add_argument("--tiny", action="store_true", help="the smallest sizes only: to try this program")
    arguments = parser.parse_args()
    bound, end, rows = BOUNDS[arguments.device.type], time.perf_counter() + arguments.budget, []
    effort = Effort(seconds=0.5, least=5, most=31)
    for shape in sorted(bound.shapes, key=bound.size)[: 2 if arguments.tiny else None]:
        for dtype in bound.dtypes:
            if time.perf_counter() > end and len(rows) > 1:
                print("the budget is spent: larger sizes were not timed")
                break
            times = timed(bound, arguments.device, shape, dtype, effort)
            rows.append((shape, times))
            words = ", ".join(f"{path} {ms:.4g} ms" for path, ms in times.items())
            print(f"{'x'.join(map(str, shape))} {str(dtype).removeprefix('torch.')}: {words}", flush=True)
    today = getattr(dispatch, bound.name)
    value, lost = best(bound, rows, today)
    losses = [f"{math.expm1(part):.1%}" for part in (loss(bound, today, rows), lost)]
    print(f"{bound.name} = {today} loses {losses[0]}, 2**{int(math.log2(value))} {losses[1]}")
    print(patch(bound.name, value) or f"{FILE.name} has the best value")
    return 0


if __name__ == "__main__":
    sys.exit(main())
