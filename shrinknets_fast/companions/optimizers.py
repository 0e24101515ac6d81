"""What the package needs to know about an optimizer: which state belongs to a parameter, and when it steps."""

from __future__ import annotations

import types
import weakref
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch

from ..errors import ShrinkError
from ..insides import never_compiled
from .groups import note_emptied
from .state import Layout, Member, dims_of, tensors_of

REFUSED = {
    "LBFGS": "whose state is not kept feature by feature",  # one flat history over all parameters
    "SparseAdam": "whose state is not kept feature by feature",
    "ZeroRedundancyOptimizer": "of whose state each rank keeps a part, by sizes that it notes once",
}


def checked_optimizers(optimizers: torch.optim.Optimizer | Iterable[torch.optim.Optimizer]) -> tuple[Followed, ...]:
    """The :class:`Followed` of the optimizers given (one, or several), or an error that names the one that cannot be followed."""
    given = (optimizers,) if isinstance(optimizers, torch.optim.Optimizer) else tuple(optimizers)
    return tuple(Followed(optimizer) for optimizer in given)


class Followed:
    """An optimizer, or a wrapper around one: ``parts`` are itself and those inside, whose state and groups are followed alike.

    layouts: {(dimensions of a parameter, path in its state): [Layout]}, as a trial finds out. is_compiled: whether a step of it
    has been, as far as :meth:`around_steps` is asked to look.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.name = type(optimizer).__name__
        if not isinstance(optimizer, torch.optim.Optimizer):
            within = [name for name, value in attributes(optimizer) if isinstance(value, torch.optim.Optimizer)]
            hint = f"; give it the one in .{within[0]}" if within else ""
            raise ShrinkError(f"optimizers holds a {self.name}, expected torch.optim.Optimizer instances{hint}")
        self.parts = parts_of(optimizer)
        for part in self.parts:
            if (why := REFUSED.get(type(part).__name__)) is not None:
                raise ShrinkError(f"optimizers holds {type(part).__name__}, {why}; it cannot be shrunk")
        self.optimizer = optimizer
        self.layouts: dict[tuple[int, str], list[Layout]] = {}
        self.is_compiled = False

    def parameters(self) -> list[torch.Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def state(self, parameter: torch.Tensor) -> list[Member]:
        """The :class:`Member` s of what goes where ``parameter`` goes. An error names what fits nowhere."""
        found, seen = [], set()
        for part in self.parts:
            kept = part.state.get(parameter)
            for path, tensor in self.tensors_of(kept) if kept else ():
                if id(tensor) in seen:
                    continue
                seen.add(id(tensor))
                dims = dims_of(
                    tuple(tensor.shape), tuple(parameter.shape), self.layouts.get((parameter.dim(), path), ())
                )
                if dims is None:
                    raise ShrinkError(
                        f"{self.name}: state {path!r} has shape {tuple(tensor.shape)}, expected the parameter's "
                        f"{tuple(parameter.shape)}; this optimizer's state cannot be shrunk"
                    )
                found.append(Member.of(tensor, dims, parameter.shape))
        return found

    def alike(self, parameter: torch.Tensor) -> list[torch.Tensor]:
        """The tensors in its state that have the parameter's shape. Quick, for each step."""
        found, shape = [], parameter.shape
        for part in self.parts:
            for value in part.state.get(parameter, {}).values():
                values = (value,) if isinstance(value, torch.Tensor) else (t for _, t in self.tensors_of(value))
                found += [t for t in values if t.shape == shape]
        return found

    def tensors_of(self, kept: Any) -> list[tuple[str, torch.Tensor]]:
        try:
            return list(tensors_of(kept))
        except ShrinkError as error:
            raise ShrinkError(f"{self.name}: {error}") from None

    def check(self) -> None:
        """Raise if there is state that does not fit its parameter."""
        for parameter in self.parameters():
            self.state(parameter)
        for part in self.parts:
            for key, kept in part.state.items():
                if not isinstance(key, torch.Tensor) and self.tensors_of(kept):
                    raise ShrinkError(
                        f"{self.name}: state {key!r} holds tensors and belongs to no parameter; it cannot be shrunk"
                    )

    def drop(self, gone: set[int], undo: ExitStack) -> None:
        """Take the parameters with these ids out, with their state."""
        left = {}  # id(group) -> what is left in it; a wrapper shares its groups with what it wraps
        for part in self.parts:
            for index, group in enumerate(part.param_groups):
                if any(id(p) in gone for p in group["params"]):
                    left[id(group)] = group, [p for p in group["params"] if id(p) not in gone]
                    if not left[id(group)][1]:
                        note_emptied(part, index)
            for p in [p for p in part.state if id(p) in gone]:
                undo.callback(part.state.__setitem__, p, part.state.pop(p))
        for group, params in left.values():
            undo.callback(group.__setitem__, "params", group["params"])
            group["params"] = params

    def around_steps(self, before: Callable[[Followed], None], after: Callable[[Followed], None]) -> None:
        """Call ``before(self)`` and ``after(self)`` around each step, as long as whoever has these methods lives."""
        ahead, behind = weakly(before, self), weakly(after, self)
        optimizer: Any = self.optimizer
        if getattr(type(optimizer).step, "hooked", False) and hasattr(optimizer, "_optimizer_step_pre_hooks"):
            handle = optimizer.register_step_pre_hook(ahead)
            optimizer.register_step_post_hook(behind)
            # a callback that sets a theta has its say before us
            optimizer.register_step_post_hook(lambda own, *_: own._optimizer_step_pre_hooks.move_to_end(handle.id))
        else:  # a wrapper that never called Optimizer.__init__; learning-rate schedulers, too, put a method in its place
            optimizer.step = types.MethodType(surrounded(optimizer.step, ahead, behind), optimizer)

    def after_loading(self, call: Callable[[Followed], None]) -> None:
        for part in self.parts:
            if hasattr(part, "_optimizer_load_state_dict_post_hooks"):
                part.register_load_state_dict_post_hook(weakly(call, self))


def attributes(thing: object) -> list[tuple[str, Any]]:
    return list(vars(thing).items()) if hasattr(thing, "__dict__") else []


def parts_of(optimizer: torch.optim.Optimizer) -> list[torch.optim.Optimizer]:
    """The optimizer and those that it wraps, outermost first."""
    found = [optimizer]
    for part in found:
        for _, value in attributes(part):
            if isinstance(value, torch.optim.Optimizer) and all(value is not known for known in found):
                found.append(value)
    return found


def surrounded(step: Callable[..., Any], before: Callable[[], None], after: Callable[[], None]) -> Callable[..., Any]:
    def guarded(optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
        before()
        result = step(*args, **kwargs)
        after()
        return result

    return guarded


def weakly(method: Callable[[Followed], None], followed: Followed) -> Callable[..., None]:
    """The optimizer does not keep the collector: one that is dropped does nothing more."""
    weak = weakref.WeakMethod(method)

    @never_compiled
    def call() -> None:
        method = weak()
        if method is not None:
            method(followed)

    def hook(*args: Any) -> None:
        if torch.compiler.is_compiling():  # noted at each run of what is compiled
            followed.is_compiled = True
        call()

    return hook
