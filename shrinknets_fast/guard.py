"""What a collector does around each step of its optimizers: the dead stay dead, and nothing of a stale shape is used."""

import weakref

from .checks import check_gradients
from .optimizers import bury, parameters_of, state_tensors


class Guard:
    """Hooks on the optimizers, which do not keep it: once it is dropped they do nothing more. thetas(): those of the model."""

    def __init__(self, optimizers, thetas):
        self._thetas = thetas
        self._buried = {}  # id(optimizer) -> versions of the thetas after its last step
        for optimizer in optimizers:
            optimizer.register_step_pre_hook(weakly(self._before_step))
            optimizer.register_step_post_hook(weakly(self._after_step))
            optimizer.register_load_state_dict_post_hook(weakly(self._after_load))

    def _before_step(self, optimizer, args, kwargs):
        check_gradients(parameters_of(optimizer))
        if self._buried.get(id(optimizer)) != self._versions():  # set by hand since its last step, not through .data
            bury(optimizer, self._thetas())

    def _after_step(self, optimizer, args, kwargs):
        bury(optimizer, self._thetas())
        self._buried[id(optimizer)] = self._versions()

    def _after_load(self, optimizer):
        for p in parameters_of(optimizer):
            state_tensors(optimizer, p)  # raises if they are of another size

    def _versions(self):
        return [theta._version for theta in self._thetas()]


def weakly(method):
    weak = weakref.WeakMethod(method)

    def call(*args):
        method = weak()
        return method and method(*args)

    return call
