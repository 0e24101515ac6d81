"""What all of them need: checked options, filters, the penalty's gradient, and checkpoints of other sizes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from ..checkpoint import make_fit
from ..companions.others import note_shrunk
from ..distributed import Wrappers
from ..errors import ShrinkError
from ..filters import named_filters, thetas
from ..graph.modules import Sizes
from ..insides import pytree
from ..placement import add_filters

Filters = Mapping[str, Any] | bool


def checked_lam(lam: float) -> float:
    if isinstance(lam, bool) or not isinstance(lam, (int, float)) or not 0 <= lam < math.inf:
        raise ShrinkError(f"lam is {lam!r}, expected a finite number of at least 0")
    return float(lam)


def give_filters(model: nn.Module, filters: Filters, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """What ``filters=`` asks for, unless the model has some: True, or the options of :func:`add_filters`."""
    if named_filters(model):
        return
    if filters is False:
        raise ShrinkError(f"filters is False and {type(model).__name__} has none, so nothing could shrink")
    add_filters(model, args, example_kwargs=kwargs, **({} if filters is True else dict(filters)))


def on_device(example: Any, model: nn.Module) -> Any:
    device = next(model.parameters()).device
    return pytree.tree_map_only(torch.Tensor, lambda t: t.to(device), example)


def check_held(model: nn.Module, optimizers: Iterable[torch.optim.Optimizer]) -> None:
    """A theta that no optimizer has would never die."""
    held = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    lacking = [name for name, theta in thetas(model).items() if id(theta) not in held]
    if lacking:
        raise ShrinkError(
            f"{lacking[0]} is in no optimizer, so nothing there can die; make the optimizer after the filters"
        )


@torch.no_grad()
def add_gradient(model: nn.Module, optimizer: torch.optim.Optimizer, lam: float, scale: Any = 1.0) -> None:
    """The gradient of ``lam * penalty(model)`` for the thetas that this optimizer moves; scale: what their gradient has now."""
    held = [p for group in optimizer.param_groups for p in group["params"]]
    if not lam or all(p.grad is None for p in held):  # a step without a backward moves nothing
        return
    ids = {id(p) for p in held}
    for theta in thetas(model).values():
        if id(theta) in ids and theta.requires_grad:
            more = (theta > 0).to(theta.dtype) * lam * scale
            theta.grad = more if theta.grad is None else theta.grad.add_(more)


class Penalty:
    """Adds the penalty's gradient at each step of ``optimizer``: once per step, unscaled, after clipping."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, lam: float) -> None:
        self.lam = lam
        self._model = model
        self._handle = optimizer.register_step_pre_hook(self._before_step)

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        scale = getattr(optimizer, "grad_scale", None)  # a fused optimizer unscales by itself
        add_gradient(self._model, optimizer, self.lam, 1.0 if scale is None else scale)

    def remove(self) -> None:
        self._handle.remove()


class Resizing:
    """A hook of ``model.load_state_dict``: the model takes the checkpoint's sizes first, at most those that it has now."""

    def __init__(self, model: nn.Module) -> None:
        self.largest = {name: tuple(t.shape) for name, t in model.state_dict().items() if isinstance(t, torch.Tensor)}
        self.sizes = Sizes(model)

    def __call__(self, module: nn.Module, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        own = module.state_dict(keep_vars=True)
        found = {name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)}
        present = {id(own[name]): name for name in found if name in own}
        for name, tensor in own.items():  # tied: files of safetensors have them once
            if name not in found and id(tensor) in present:
                found[name] = state_dict[prefix + name] = found[present[id(tensor)]]
        for name in named_filters(module):
            theta, weight = (f"{name}.{kind}" if name else kind for kind in ("theta", "weight"))
            if weight in found and theta not in found and theta in own:
                raise ShrinkError(f"load_state_dict: missing {theta}; the checkpoint is of a model without this filter")
        lost = [name for name in found if name not in own]
        if any(name.endswith("theta") or name in self.largest for name in lost):
            raise ShrinkError(f"load_state_dict: unexpected {lost[:3]}; make the model anew, with its filters")
        self.fit(module, found, strict=False)

    def fit(self, module: nn.Module, found: Mapping[str, Any], strict: bool) -> None:
        """found: the checkpoint's tensors, of which only the shapes count; strict: whether all names have to be there."""
        wrappers = Wrappers(module)
        wrappers.find()
        options: Any = {"strict": strict, "largest": self.largest, "sizes": self.sizes, "parts": True}
        changed = make_fit("load_state_dict", module, found, **options)
        if changed:
            note_shrunk((tensor, shape) for tensor, shape in changed if isinstance(tensor, nn.Parameter))
            wrappers.rebuild()


def resize_when_loading(model: nn.Module) -> Resizing:
    """Once per model."""
    hooks = [getattr(hook, "hook", None) for hook in model._load_state_dict_pre_hooks.values()]
    found = next((hook for hook in hooks if isinstance(hook, Resizing)), None)
    if found is None:
        model.register_load_state_dict_pre_hook(found := Resizing(model))
    return found
