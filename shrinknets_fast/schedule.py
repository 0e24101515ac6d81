"""Lambda over the steps of a run, without a target."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, get_args

from .errors import ShrinkError

__all__ = ["LambdaSchedule"]

Shape = Literal["constant", "linear", "cosine"]


class LambdaSchedule:
    """``.lam``, the weight of the penalty: rises linearly from 0 over ``warmup`` steps, then goes the way of ``shape``.

    "constant": stays at ``lam``, and is 0 from ``steps`` on, so that what is left trains without a penalty; "linear" and
    "cosine": falls to 0 at ``steps``. Without ``steps`` only "constant" is possible. Call :meth:`step` once per training step,
    and multiply :func:`penalty` by ``.lam`` or give it to ``ProximalL1.lam``. Raises ShrinkError for any other value.
    """

    def __init__(self, lam: float, *, warmup: int = 0, steps: int | None = None, shape: Shape = "constant") -> None:
        self._peak = checked_number("LambdaSchedule", "lam", lam, 0.0)
        self._warmup = checked_steps("LambdaSchedule", "warmup", warmup, 0)
        self._end = steps if steps is None else checked_steps("LambdaSchedule", "steps", steps, warmup + 1)
        if shape not in get_args(Shape):
            raise ShrinkError(f"LambdaSchedule: shape is {shape!r}, expected one of {', '.join(get_args(Shape))}")
        if steps is None and shape != "constant":
            raise ShrinkError(f"LambdaSchedule: shape is {shape!r} without steps, expected the number of steps until 0")
        self._shape = shape
        self._steps = 0

    @property
    def lam(self) -> float:
        if self._steps < self._warmup:
            return self._peak * self._steps / self._warmup
        if self._end is None:
            return self._peak
        if self._steps >= self._end:
            return 0.0
        passed = (self._steps - self._warmup) / (self._end - self._warmup)
        share = {"constant": 1.0, "linear": 1 - passed, "cosine": (1 + math.cos(math.pi * passed)) / 2}
        return self._peak * share[self._shape]

    def step(self) -> None:
        """Call once per training step."""
        self._steps += 1

    def state_dict(self) -> dict[str, int]:
        return {"steps": self._steps}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self._steps = int(state["steps"])


def checked_number(who: str, name: str, value: float, low: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value < math.inf:
        raise ShrinkError(f"{who}: {name} is {value!r}, expected a finite number of at least {low:g}")
    return float(value)


def checked_steps(who: str, name: str, value: int, low: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ShrinkError(f"{who}: {name} is {value!r}, expected an integer of at least {low}")
    return value
