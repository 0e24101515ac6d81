"""One comparison between ranks: started on all of them, read on all of them, and in words where something differs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from ..errors import ShrinkError
from .digest import Facts, TensorDigest, digest_of_words

Named = Sequence[tuple[str, torch.Tensor]]
NOTHING = "nothing was removed"


class Group:
    """A process group, and the device on which its ranks compare numbers."""

    def __init__(self, group: Any, device: torch.device) -> None:
        self.group, self.device = group, device
        self.digest = TensorDigest(device)

    def largest(self, numbers: torch.Tensor) -> None:
        from torch.distributed import ReduceOp, all_reduce

        with said_plainly():
            all_reduce(numbers, ReduceOp.MAX, group=self.group)

    def gathered(self, own: Report) -> list[Report]:
        from torch.distributed import all_gather_object, get_world_size

        reports: list[Any] = [None] * get_world_size(self.group)
        with said_plainly():
            all_gather_object(reports, own, group=self.group)
        return reports


@contextlib.contextmanager
def said_plainly() -> Iterator[None]:
    """A rank that died, or went elsewhere, shows as an error of the process group."""
    try:
        yield
    except RuntimeError as error:
        why = (str(error).splitlines() or [type(error).__name__])[0][:200]
        advice = "every rank has to make the same calls of step() and collect()"
        raise ShrinkError(f"the ranks could not be compared, {NOTHING}; {advice}: {why}") from error


class Report(NamedTuple):
    """What a rank tells the others once something differs."""

    error: str | None
    facts: Facts
    thetas: dict[str, torch.Tensor]


class Comparison:
    """Of facts and tensors. error: what this rank has met; it is raised when all know, and then on every rank."""

    def __init__(self, group: Group, facts: Facts, watched: Named, error: Exception | None) -> None:
        self._group, self._facts, self._watched, self._error = group, facts, watched, error
        said = torch.tensor([error is not None, digest_of_words(facts)], dtype=torch.int64)
        if group.device.type == "cuda":
            said = said.pin_memory().to(group.device, non_blocking=True)
        own = torch.cat([said.to(group.device), group.digest([tensor for _, tensor in watched])])
        both = torch.cat([own, ~own])  # max(~x) is ~min(x): both ends in one reduction
        group.largest(both)
        self._event: torch.cuda.Event | None = None
        self._fresh = both.is_cuda
        if both.is_cuda:
            self._event, stream = torch.cuda.Event(), torch.cuda.current_stream(both.device)
            both = both.to("cpu", non_blocking=True)
            self._event.record(stream)
        self._numbers = both

    def is_due(self) -> bool:
        """At once where nothing is waited for, else when asked again: whether the device is ready differs between ranks."""
        fresh, self._fresh = self._fresh, False
        return not fresh

    def settle(self) -> None:
        """Raises on every rank where anything differs, or a rank has met an error."""
        if self._event is not None:
            self._event.synchronize()
        high, low = self._numbers.tolist()[:3], [~number for number in self._numbers.tolist()[3:]]
        if high == low and not high[0]:
            return
        own = None if self._error is None else f"{type(self._error).__name__}: {self._error}"
        thetas = {name: tensor.detach().cpu() for name, tensor in self._watched}
        reports = self._group.gathered(Report(own, self._facts, thetas))
        if self._error is not None:
            raise self._error
        raise ShrinkError(f"{difference(reports)}; {NOTHING}")


def difference(reports: Sequence[Report]) -> str:
    """In words, the first one; the same on every rank."""
    for rank, report in enumerate(reports):
        if report.error is not None:
            return f"rank {rank} has met an error: {report.error}"
    first = reports[0]
    for rank, other in enumerate(reports):
        for what in [*first.facts, *(what for what in other.facts if what not in first.facts)]:
            here, there = first.facts.get(what, "nothing"), other.facts.get(what, "nothing")
            if here != there:
                return (
                    f"{what} is not the same on all ranks: {clipped(here)} on rank 0, {clipped(there)} on rank {rank}"
                )
        for name in [*first.thetas, *(name for name in other.thetas if name not in first.thetas)]:
            if (words := apart(name, first.thetas.get(name), other.thetas.get(name))) is not None:
                return f"{words} between rank 0 and rank {rank}"
    return "the ranks differ in what they compared"


def apart(name: str, here: torch.Tensor | None, there: torch.Tensor | None) -> str | None:
    if here is None or there is None or here.shape != there.shape:
        sizes = ["no entry" if t is None else f"shape {tuple(t.shape)}" for t in (here, there)]
        return f"{name} differs ({sizes[0]}, {sizes[1]})"
    if torch.equal(here, there) and torch.equal(here.signbit(), there.signbit()):
        return None
    gap = (here.double() - there.double()).abs()
    place = int(gap.nan_to_num(torch.inf).argmax())
    return f"{name} differs by {float(gap[place]):.2g} at feature {place} ({float(here[place]):.6g}, {float(there[place]):.6g})"


def clipped(text: str) -> str:
    return text if len(text) <= 120 else f"{text[:120]}..."
