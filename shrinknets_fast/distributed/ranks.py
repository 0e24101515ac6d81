"""Who has to agree before anything is removed: nobody, or all ranks of a process group.

What is compared is small, and compared before anything is touched: a rank that found an error takes part, so that no other one
waits for it, and all of them raise.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import torch

from ..collection import CollectorState as State
from ..graph.plan import Plan
from ..watch import Watch
from .comparison import Comparison, Group
from .digest import Facts, facts_of

Say = Callable[[Plan, Iterable[str]], None]
Counts = dict[int, tuple[int, int]]  # {id(theta): (dead, all)}


class Ranks(Protocol):
    """``unsettled``: whether more than the thetas has to be compared, at the next step and whether a look is due or not."""

    unsettled: bool

    def look(self, steps: int, check: Callable[[], None]) -> None:
        """``check()``, and start a look. steps: so far."""

    def counts(self) -> Counts | None:
        """What a look saw, or None while it has not arrived. Raises what ``check()`` raised, and what differs between ranks."""

    def keep(self, undo: contextlib.ExitStack, save: Callable[[], State], load: Callable[[State], None]) -> None:
        """What ranks have to have alike is as it was if they go no further."""

    def agree(self) -> contextlib.AbstractContextManager[Say]:
        """Around what is prepared on all ranks or on none. In it, ``say(plan, branches)``: what would be done."""


class Alone:
    """One process."""

    unsettled = False

    def __init__(self, watch: Callable[[], Watch]) -> None:
        self._watch = watch

    def look(self, steps: int, check: Callable[[], None]) -> None:
        check()
        self._watch().look()

    def counts(self) -> Counts | None:
        return self._watch().counts()

    def keep(self, undo: contextlib.ExitStack, save: Callable[[], State], load: Callable[[State], None]) -> None:
        """Nothing: a collection that is refused is not tried again before more is dead."""

    @contextlib.contextmanager
    def agree(self) -> Iterator[Say]:
        yield lambda plan, branches: None


class Several:
    """All ranks of a group. Every method is called by all of them, in the same order; one all_reduce of 6 numbers each time.

    facts(): what has to be the same beside the thetas. group, device: where to compare.
    """

    def __init__(
        self, watch: Callable[[], Watch], facts: Callable[[], Facts], group: Any, device: torch.device
    ) -> None:
        self.unsettled = True
        self._watch, self._facts = watch, facts
        self._group = Group(group, device)
        self._under_way: Comparison | None = None

    def look(self, steps: int, check: Callable[[], None]) -> None:
        self._watch().refresh()
        facts = {"call": f"step() number {steps}"}
        error: Exception | None = None
        try:
            check()
            facts |= self._facts() if self.unsettled else {}
            self._watch().look()
        except Exception as caught:
            error = caught
        self._under_way = self._compared(facts, error)

    def counts(self) -> Counts | None:
        """On CUDA at the step after the look, however far the device is: at the same step on all ranks."""
        if self._under_way is None or not self._under_way.is_due():
            return None
        comparison, self._under_way = self._under_way, None
        try:
            comparison.settle()
        except Exception:
            self._watch().forget()  # what it saw is not the same on all ranks
            raise
        self.unsettled = False  # not before: whoever goes on after an error hears of it again
        return self._watch().counts(wait=True)

    def keep(self, undo: contextlib.ExitStack, save: Callable[[], State], load: Callable[[State], None]) -> None:
        undo.callback(load, save())

    @contextlib.contextmanager
    def agree(self) -> Iterator[Say]:
        self._watch().refresh()
        facts: Facts = {"call": "collect()"}
        error: Exception | None = None
        try:
            yield lambda plan, branches: facts.update(facts_of(plan, branches))
            facts |= self._facts()
        except Exception as caught:
            error = caught
        self._compared(facts, error).settle()

    def _compared(self, facts: Facts, error: Exception | None) -> Comparison:
        watched: list[tuple[str, torch.Tensor]] = []
        try:
            watched = self._watch().watched()
        except Exception as caught:
            error = error or caught
        return Comparison(self._group, facts, watched, error)
