"""What happens around each step of an optimizer: the dead stay dead, and nothing of a stale shape is used."""

import torch

from ..checks import check_gradients
from ..ops.bury import bury_


class Guard:
    """Around the steps of the :class:`Followed` optimizers. thetas(): those of the model.

    Before a step a held gradient may still want to move what has been set dead since, and in it momentum, Nesterov's look-ahead,
    coupled weight decay and slow weights do: whatever was dead before the step, or is after it, is exactly 0 behind it, with its
    state. Hooks keep no collector alive.
    """

    def __init__(self, optimizers, thetas):
        self._thetas = thetas
        self._before = {}  # id(theta) -> its values before the step
        for optimizer in optimizers:
            optimizer.around_steps(self.before_step, self.after_step)
            optimizer.after_loading(self.after_load)

    @torch.no_grad()
    def before_step(self, optimizer):
        check_gradients(optimizer.parameters())
        held = self._held(optimizer)
        bury_([(theta, [] if theta.grad is None else [theta.grad]) for theta in held])
        for theta in held:
            kept = self._before.get(id(theta))
            if kept is None or kept.shape != theta.shape or kept.device != theta.device or kept.dtype != theta.dtype:
                self._before[id(theta)] = torch.empty_like(theta)
        if held:
            torch._foreach_copy_([self._before[id(theta)] for theta in held], held)

    @torch.no_grad()
    def after_step(self, optimizer):
        held = self._held(optimizer)
        known = [theta for theta in held if id(theta) in self._before]
        bury_([(self._before[id(theta)], [theta]) for theta in known])
        bury(optimizer, held)

    def after_load(self, optimizer):
        optimizer.check()  # raises if its state is of another size

    def _held(self, optimizer):
        wanted = {id(theta) for theta in self._thetas()}
        return [p for p in optimizer.parameters() if id(p) in wanted]


def bury(optimizer, thetas):
    """Set every ``theta <= 0`` to exactly 0 and zero its state in the :class:`Followed` optimizer."""
    if thetas:
        bury_([(theta, optimizer.alike(theta)) for theta in thetas])
