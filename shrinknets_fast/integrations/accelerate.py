"""One call in place of ``accelerator.prepare``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..collector import GarbageCollector
from ..errors import ShrinkError
from ..graph.trace import Inputs
from .common import Penalty, check_held, checked_lam, on_device, resize_when_loading

SUPPORTED = {"NO", "MULTI_CPU", "MULTI_GPU"}


class _State:
    """The collector in ``accelerator.save_state``. Loaded last, when the model may have taken other sizes: it is read anew."""

    def __init__(self, gc: GarbageCollector) -> None:
        self.gc = gc

    def state_dict(self) -> Any:
        return self.gc.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.gc.reread()
        self.gc.load_state_dict(state)


def prepare(
    accelerator: Any,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *others: Any,
    example_inputs: Inputs = (),
    example_kwargs: Mapping[str, Any] | None = None,
    lam: float = 0.0,
    **options: Any,
) -> tuple[Any, ...]:
    """``accelerator.prepare(model, optimizer, *others)``, and the :class:`GarbageCollector` behind them. Once per model.

    model: has its filters. lam: the penalty's weight, of which the gradient is added at each step of the optimizer, once, after
    clipping and unscaling; 0: the loss has it. Call ``gc.step()`` after ``optimizer.step()``. ``save_state`` and ``load_state``
    take the collector along, and a model of the original size takes the checkpoint's.
    """
    lam = checked_lam(lam)
    kind = getattr(accelerator.distributed_type, "name", "")
    if kind not in SUPPORTED:
        raise ShrinkError(
            f"accelerate.prepare: distributed_type is {kind}, expected one of {', '.join(sorted(SUPPORTED))}"
        )
    if any(model is known for known in accelerator._models):
        raise ShrinkError("accelerate.prepare: model has been prepared already; give it the model itself, once")
    check_held(model, [optimizer])
    resize_when_loading(model)
    wrapped, prepared, *rest = accelerator.prepare(model, optimizer, *others)
    args = (example_inputs,) if isinstance(example_inputs, torch.Tensor) else tuple(example_inputs)
    args, kwargs = on_device((args, dict(example_kwargs or {})), model)
    gc = GarbageCollector(wrapped, args, example_kwargs=kwargs, optimizers=prepared.optimizer, **options)
    if lam:
        Penalty(model, prepared.optimizer, lam)
    accelerator.register_save_state_pre_hook(lambda *_: gc.trim(waste=0))  # safetensors takes whole storages only
    accelerator.register_load_state_pre_hook(lambda *_: gc.trim(waste=0))
    accelerator.register_for_checkpointing(_State(gc))
    return wrapped, prepared, *rest, gc
