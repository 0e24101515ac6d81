"""Lambda steered so that a run ends at an asked size."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from .errors import ShrinkError, warn
from .filters import HOW, named_filters
from .floors import FLOOR, Floors
from .graph.reading import Reading
from .graph.size import Dead, Flops, features_left, parameters_left
from .graph.trace import Inputs, checked_inputs
from .latest import collector_of, was_loaded
from .ranking import Ranking, first_fitting
from .schedule import checked_number, checked_steps
from .wrapped import unwrapped

__all__ = ["Budget"]

GAIN = 0.1  # of log(lambda) per look, at least
URGENT = 0.3  # the same as the target comes due
RANGE = 6  # of log(lambda) until the target is due, at least
SOONEST = 5  # looks: nothing is asked to die faster than that


class Budget:
    """Steers lambda so that training ends at the asked size, from above, and holds it there.

    Exactly one target: parameters: entries of the parameters of the folded network; flops: of a forward of it on
    ``example_inputs``, as ``torch.utils.flop_counter`` counts; features: live features, those of a shared theta once. What counts
    is what ``gc.collect()`` would leave, with its align, min_alive and uniform if the model has a collector.

    Multiply :func:`penalty` by ``.lam``, or give it to ``ProximalL1.lam``, and call :meth:`step` once per training step. At each
    look, every ``every`` steps, the features with the smallest thetas whose death would reach the target are the *candidates*.
    ``log(lam)`` rises while the largest theta among them falls too slowly to be 0 at ``due * steps``, and sinks while it falls
    faster. All other features are protected: in a step of a ``torch.optim`` optimizer their thetas do not fall below 1e-3. So the
    size ends at most at the target and less than one feature below it. Once there every live feature is protected, and lam sinks
    linearly to 0 at ``steps``: L1 also keeps a network from overfitting, so its sudden end costs accuracy.

    steps: training steps of the run. due: the share of them after which the target is to be reached; the rest trains at the final
    size. warmup: steps in which lam rises from 0 to ``lam``, where the search begins, and nothing dies. every: steps between
    looks; a look waits for the device once and counts a few times (0.4 ms each for an MLP, 10 ms for a ResNet-50).

    Under DistributedDataParallel all ranks call :meth:`step`. Raises ShrinkError, in one line, for no target or several, and for
    one that is no number, larger than the network, or smaller than what stays even if all filters die.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Inputs,
        *,
        parameters: float | None = None,
        flops: float | None = None,
        features: float | None = None,
        example_kwargs: Mapping[str, Any] | None = None,
        lam: float = 1e-3,
        steps: int = 1000,
        due: float = 0.7,
        warmup: int = 0,
        every: int = 10,
    ) -> None:
        self._kind, self.target = one_target({"parameters": parameters, "flops": flops, "features": features})
        self._first_lam = checked_number("Budget", "lam", lam, 1e-12)
        self._warmup = checked_steps("Budget", "warmup", warmup, 0)
        self._end = checked_steps("Budget", "steps", steps, 1)
        self._due = checked_due(self._end, due, warmup)
        self._every = checked_steps("Budget", "every", every, 1)
        self._gain = min(1.0, max(GAIN, RANGE * self._every / (self._due - self._warmup)))
        self.model = model = unwrapped(model)
        if not named_filters(model):
            raise ShrinkError(f"Budget: {type(model).__name__} has no filters; {HOW}")
        self._inputs = checked_inputs(model, example_inputs, example_kwargs)
        self._own: Reading | None = None
        self._measure = self._measured()
        self._ranking = Ranking(self._reading().filters)
        self._steps, self._log, self._candidates = 0, 0.0, 0
        self._last: tuple[int, float] | None = None  # (step, theta) of the last candidate to go, at the last look
        self._rate = 0.0  # at which theta is to fall, per step
        self._reached = self._warned = False
        self._landing = 0, 0.0  # (step, lam) when the target was reached: lam sinks from there
        self._refusal = ""  # of a model that was loaded: it may go on from where it was at its target
        self._check_target()
        self._look_at_thetas()
        self._floors = Floors(self._held)

    @property
    def lam(self) -> float:
        """The weight of the penalty in the next step."""
        if self._reached:
            step, lam = self._landing
            return lam * max(self._end - self._steps, 0) / max(self._end - step, 1)
        risen = min(1.0, self._steps / self._warmup) if self._warmup else 1.0
        return self._first_lam * risen * math.exp(self._log)

    @property
    def reached(self) -> bool:
        """Whether the target has been reached, as of the last look."""
        return self._reached

    def size(self) -> int:
        """Of the network that a collection would leave now, in the unit of the target. Waits for the device."""
        reading = self._reading()
        self._ranking.follow(reading.filters)
        return self._measure(reading, self._ranking.look().dead())

    def step(self) -> None:
        """Call once per training step, after ``optimizer.step()``; before or after ``gc.step()``."""
        if self._refusal:
            raise ShrinkError(f"{self._refusal}, and no state of a Budget was loaded")
        self._steps += 1
        if self._reached or self._steps % self._every and self._steps != self._end:
            return
        theta = self._look_at_thetas()
        if theta is not None and self._steps > self._warmup:
            self._steer(theta)
        self._last = None if theta is None else (self._steps, theta)
        if self._steps >= self._end and not self._reached and not self._warned:
            self._warned = True
            asked = f"{self._kind} is {self.target:g}, due at step {self._due}"
            warn(
                f"Budget: {asked}, but {self.size():,} are left at step {self._steps}; is lam in the loss, filter_lr too small?"
            )

    def _steer(self, theta: float) -> None:
        """theta: the largest of the candidates, which is to fall to 0 until the target is due."""
        if self._last is None:
            return
        looked, before = self._last
        remain = self._due - self._steps
        if remain >= SOONEST * self._every or not self._rate:
            self._rate = theta / max(remain, SOONEST * self._every)
        needed = self._rate  # stays at last: one that sinks with theta would never see it reach 0
        fallen = (before - theta) / (self._steps - looked)
        scale = max(needed, abs(fallen))
        gain = max(self._gain, min(URGENT, RANGE * self._every / max(remain, 1)))
        self._log += gain * max(-1.0, min(1.0, (needed - fallen) / scale)) if scale else 0.0

    def _look_at_thetas(self) -> float | None:
        """Choose the candidates and protect the others. Returns the largest theta of the candidates, None without any."""
        reading = self._reading()
        self._ranking.follow(reading.filters)
        seen = self._ranking.look()
        if not self._reached:
            lam = self.lam if self._steps else 0.0
            fits = lambda count: self._measure(reading, seen.dead(count)) <= self.target  # noqa: E731
            self._candidates = first_fitting(fits, self._candidates, seen.alive)
            if self._candidates == 0:
                self._reached, self._landing = True, (self._steps, lam)
        holding = self._reached or self._steps < self._warmup
        self._ranking.protect(seen.dead(0 if holding else self._candidates))
        return None if self._reached else seen.value(self._candidates)

    def _held(self, ids: set[int]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """What :class:`Floors` asks before a step of an optimizer that has the parameters with these ids."""
        if self._ranking.is_stale(ids):  # a collection came since
            self._look_at_thetas()
        return self._ranking.floors(FLOOR, ids)

    def _reading(self) -> Reading:
        """The model's collector knows it best; without one it is read here, and again where its sizes have changed."""
        collector = collector_of(self.model)
        if collector is not None and is_current(collector.reading):
            self._own = None
            return collector.reading
        if self._own is None or not is_current(self._own):
            self._own = Reading(self.model, *self._inputs)
        return self._own

    def _measured(self) -> Callable[[Reading, Dead], int]:
        if self._kind == "flops":
            return Flops(self.model, *self._inputs)
        return parameters_left if self._kind == "parameters" else features_left

    def _check_target(self) -> None:
        reading, seen = self._reading(), self._ranking.look()
        now, least = self._measure(reading, seen.dead()), self._measure(reading, seen.dead(seen.alive))
        if self.target > now:
            self._refusal = f"Budget: {self._kind} is {self.target:g}, but {type(self.model).__name__} has only {now:,}"
            if not was_loaded(self.model):
                raise ShrinkError(self._refusal)
        if self.target < least:
            raise ShrinkError(f"Budget: {self._kind} is {self.target:g}, but {least:,} stay even if all filters die")

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint; a run that goes on from it is the same bit by bit."""
        names = ("steps", "log", "candidates", "last", "rate", "reached", "landing", "warned")
        return {**{name: getattr(self, f"_{name}") for name in names}, "protected": self._ranking.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._refusal = ""
        self._ranking.follow(self._reading().filters)
        self._ranking.load_state_dict(state["protected"])
        last = state["last"]
        self._last = None if last is None else (int(last[0]), float(last[1]))
        self._steps, self._log, self._candidates = int(state["steps"]), float(state["log"]), int(state["candidates"])
        self._reached, self._warned = bool(state["reached"]), bool(state["warned"])
        self._rate, (step, lam) = float(state["rate"]), state["landing"]
        self._landing = int(step), float(lam)


def is_current(reading: Reading) -> bool:
    try:
        reading.check_tensors()
    except ShrinkError:
        return False
    return True


def one_target(targets: Mapping[str, float | None]) -> tuple[str, float]:
    given = {name: value for name, value in targets.items() if value is not None}
    if len(given) != 1:
        words = " and ".join(f"{name}={value!r}" for name, value in given.items()) or "none"
        raise ShrinkError(f"Budget: targets are {words}, expected exactly one of {', '.join(targets)}")
    ((name, value),) = given.items()
    return name, checked_number("Budget", name, value, 1.0)


def checked_due(steps: int, due: float, warmup: int) -> int:
    """The step at which the target is due."""
    share = checked_number("Budget", "due", due, 0.0)
    found = round(steps * share)
    if share > 1 or found <= warmup:
        raise ShrinkError(
            f"Budget: due is {due!r} of {steps} steps, expected at most 1, and after the warmup of {warmup}"
        )
    return found
