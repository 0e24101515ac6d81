"""Which path a filtered linear layer or convolution takes: one small table from (shape, dtype, device) to its name.

fold: the filter is folded into the weight, the library multiplies. epilogue: the library multiplies, one pass scales the output.
triton: one kernel does both. reference: plain torch operations, for comparison. A path given by hand, as an argument or in
the environment variable SHRINKNETS_FAST_PATH, is taken where it can be; export always sees fold, which the collector knows.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import torch

from .errors import ShrinkError
from .insides import is_tracing
from .ops.checks import IN_TRITON

Path = Literal["fold", "epilogue", "triton", "reference"]
PATHS: tuple[Path, ...] = ("fold", "epilogue", "triton", "reference")
VARIABLE = "SHRINKNETS_FAST_PATH"
FORCED = os.environ.get(VARIABLE) or None

# Below this many weights a pass over them costs less than epilogue's further calls: 25 us at 16 x 64 x 64.
CALL_BOUND = 2**14

# Below this many multiplications a GPU waits for the host: the path with the fewest launches wins. A guess: no GPU was at hand.
LAUNCH_BOUND = 2**28


class Layer(NamedTuple):
    """What the rules look at: x is (rows, columns), weight (features, columns), dtype what they multiply in.

    A convolution is this product for each pixel of its output, and each channel and tap of its window.
    flips: relu behind half weights. Folding rounds such a weight again, so signs near zero flip and gradients are off by 6 times
    the unfused composition's error (seen with bfloat16); under autocast the one cast rounds either way.
    """

    rows: int
    columns: int
    features: int
    dtype: torch.dtype
    flips: bool = False
    barred: bool = False  # from Triton by default: a parameter in float64, which it does not take, or see truncates

    @property
    def light(self) -> bool:
        """A call costs more than a pass over the weights."""
        return self.columns * self.features <= CALL_BOUND

    @property
    def weighs(self) -> bool:
        """Weights outweigh outputs, and calls."""
        return self.rows < self.columns and not self.light

    @property
    def small(self) -> bool:
        known = self.dtype in IN_TRITON and not self.barred
        return known and self.rows * self.columns * self.features <= LAUNCH_BOUND


def truncates(kind: str, dtype: torch.dtype) -> bool:
    """Of float32's bits tf32 drops 13: torch rounds, Triton truncates, with 2.6 times the error and a bias."""
    return kind == "cuda" and dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"


WEIGHS = f"rows < columns, more than {CALL_BOUND:,} weights"
Rule = tuple[str, str, str, Callable[[Layer], bool], Path]
RULES: tuple[Rule, ...] = (  # (op, device, words, test, path); the first that fits, else fold
    ("linear", "cuda", f"at most {LAUNCH_BOUND:,} products", lambda layer: layer.small, "triton"),
    ("linear", "cuda", "relu and half weights", lambda layer: layer.flips and not layer.barred, "triton"),
    ("conv", "cuda", "relu and half weights", lambda layer: layer.flips, "epilogue"),
    # fold passes 5 times over features x columns weights, epilogue 5 times over rows x features outputs
    ("linear", "cpu", WEIGHS, lambda layer: layer.weighs, "epilogue"),
    ("linear", "cpu", "relu and half weights", lambda layer: layer.flips, "epilogue"),
    ("conv", "cpu", WEIGHS, lambda layer: layer.weighs, "epilogue"),
    ("conv", "cpu", "relu and half weights", lambda layer: layer.flips, "epilogue"),
)


def checked(path: str, source: str) -> Path:
    if path not in PATHS:
        raise ShrinkError(f"{source} is {path!r}, expected one of {', '.join(PATHS)}")
    return path


def path_of(op: Literal["linear", "conv"], device: str, layer: Layer, path: Path | None = None) -> Path:
    """The name of the path that a :class:`Layer` of ``op`` ("linear", "conv") takes on a device ("cpu", "cuda", ...)."""
    if path is not None:
        checked(path, f"filtered_{op}: path")
    elif FORCED is not None:
        path = checked(FORCED, VARIABLE)
    if torch.compiler.is_compiling():  # sizes may be symbols, which have no hash
        return "fold" if torch.compiler.is_exporting() else path or by_rules(op, device, layer)
    if is_tracing():
        return "fold"
    return path or remembered(op, device, layer)


@contextlib.contextmanager
def folding() -> Iterator[None]:
    """Inside, what no path was named for is folded, on all devices alike."""
    global FORCED
    before, FORCED = FORCED, FORCED or "fold"
    try:
        yield
    finally:
        FORCED = before


def by_rules(op: str, device: str, layer: Layer) -> Path:
    return next((name for o, where, _, fits, name in RULES if (o, where) == (op, device) and fits(layer)), "fold")


remembered = functools.lru_cache(4096)(by_rules)


def table() -> str:
    """The rules as text."""
    lines = [f"{'op':<8} {'device':<8} {'path':<10} where"]
    lines += [f"{op:<8} {where:<8} {path:<10} {words}" for op, where, words, _, path in RULES]
    lines.append(f"{'any':<8} {'any':<8} {'fold':<10} else")
    lines.append(
        f"override: path= or {VARIABLE} ({FORCED or 'not set'}), one of {', '.join(PATHS)}; torch.export: fold"
    )
    return "\n".join(lines)
