"""What happens around each step of an optimizer: the dead stay dead, and nothing of a stale shape is used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch

from ..checks import check_gradients
from ..ops.aliveness import aliveness, counts_in
from ..ops.bury import bury_
from ..sharded import local_part
from .optimizers import Followed
from .others import anything_shrank


class Guard:
    """Around the steps of the :class:`Followed` optimizers. thetas(): those of the model, the same list as long as they are.

    Before a step a held gradient may still want to move what has been set dead since, and in it momentum, Nesterov's look-ahead,
    coupled weight decay and slow weights do: whatever was dead before the step, or is after it, is exactly 0 behind it, with its
    state. Hooks keep no collector alive.
    """

    def __init__(self, optimizers: Iterable[Followed], thetas: Callable[[], Sequence[torch.Tensor]]) -> None:
        self._thetas = thetas
        # id(optimizer) -> (what they were found for, its thetas)
        self._held: dict[int, tuple[tuple[int, ...], list[torch.Tensor]]] = {}
        # id(optimizer) -> [(copy, theta)] of those with dead features before its step
        self._before: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        for optimizer in optimizers:
            optimizer.around_steps(self.before_step, self.after_step)
            optimizer.after_loading(self.after_load)

    @torch.no_grad()
    def before_step(self, optimizer: Followed) -> None:
        if anything_shrank():  # else no gradient can be stale
            check_gradients(optimizer.parameters())
        thetas = dead_in(self.held(optimizer))
        # the state too: a schedule-free step with a closure computes with a theta made of it
        beside = [[t for t in (theta.grad, *optimizer.alike(theta)) if t is not None] for theta in thetas]
        bury_([(local_part(theta), list(map(local_part, own))) for theta, own in zip(thetas, beside, strict=True)])
        parts = [local_part(theta) for theta in thetas]
        copies = torch._foreach_mul(parts, 1.0) if parts else []
        self._before[id(optimizer)] = list(zip(copies, parts, strict=True))

    @torch.no_grad()
    def after_step(self, optimizer: Followed) -> None:
        bury_([(copy, [theta]) for copy, theta in self._before.pop(id(optimizer), ())])
        bury(optimizer, dead_in(self.held(optimizer)))

    def after_load(self, optimizer: Followed) -> None:
        optimizer.check()  # raises if its state is of another size

    def held(self, optimizer: Followed) -> list[torch.Tensor]:
        """The thetas that the optimizer has."""
        thetas = self._thetas()
        found_for = (id(thetas), *(len(group["params"]) for group in optimizer.optimizer.param_groups))
        known = self._held.get(id(optimizer))
        if known is None or known[0] != found_for:
            wanted = {id(theta) for theta in thetas}
            known = found_for, [p for p in optimizer.parameters() if id(p) in wanted]
            self._held[id(optimizer)] = known
        return known[1]


def dead_in(thetas: list[torch.Tensor]) -> list[torch.Tensor]:
    """Those with dead features, of which there are mostly none; off the CPU all, because to ask would be to wait."""
    here = [theta for theta in thetas if theta.is_cpu]
    if not here:
        return thetas
    counts = counts_in(aliveness([[local_part(theta)] for theta in here]), len(here))[::2]
    found = [theta for theta, count in zip(here, counts, strict=True) if count]
    return found + [theta for theta in thetas if not theta.is_cpu]


def bury(optimizer: Followed, thetas: list[torch.Tensor]) -> None:
    """Set every ``theta <= 0`` to exactly 0 and zero its state in the optimizer."""
    if thetas:
        bury_([(local_part(theta), [local_part(t) for t in optimizer.alike(theta)]) for theta in thetas])
