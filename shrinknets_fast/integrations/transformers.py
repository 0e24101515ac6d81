"""A TrainerCallback for Hugging Face's Trainer."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..checkpoint import load_state_dict
from ..collector import GarbageCollector
from ..errors import ShrinkError
from ..filters import thetas
from ..graph.trace import Inputs
from .common import Filters, Penalty, check_held, checked_lam, give_filters, on_device, resize_when_loading
from .tensorboard import scalars

try:
    package = importlib.import_module("transformers")
except ImportError as error:
    needs = "shrinknets_fast.integrations.transformers needs transformers: pip install transformers accelerate"
    raise ImportError(needs) from error

Trainer: Any = package.Trainer
TrainerCallback: Any = package.TrainerCallback
STATE = "shrinknets_fast.pt"


class Shrink(TrainerCallback):
    """For ``Trainer(callbacks=[Shrink(...)])``: gives the model its filters, adds the penalty, collects and logs what is left.

    example_inputs, example_kwargs: of the model's forward (None: its ``dummy_inputs``). lam: the penalty's weight; its gradient
    is added once per optimizer step, after clipping and unscaling. filter_lr: the thetas' own learning rate, without weight decay
    (None: the weights'). filters, options: as in :class:`shrinknets_fast.integrations.lightning.Shrink`.
    """

    def __init__(
        self,
        example_inputs: Inputs = (),
        *,
        lam: float,
        filter_lr: float | None = None,
        example_kwargs: Mapping[str, Any] | None = None,
        filters: Filters = True,
        **options: Any,
    ) -> None:
        self.lam, self.filter_lr = checked_lam(lam), filter_lr
        self.gc: GarbageCollector | None = None
        self._example, self._kwargs, self._filters = example_inputs, example_kwargs, filters
        self._options = options
        self._trainer: Any = None
        self._penalty: Penalty | None = None

    def on_init_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self._trainer = trainer = trainer_of(self)
        for name in ("is_fsdp_enabled", "is_deepspeed_enabled"):
            if getattr(trainer, name, False):
                raise ShrinkError(
                    f"Shrink: the Trainer's {name} is True, expected one device or DistributedDataParallel"
                )
        if trainer.model_init is not None:
            raise ShrinkError("Shrink: the Trainer has model_init, which drops filters; give it model=")
        if args.n_gpu > 1:
            raise ShrinkError(f"Shrink: n_gpu is {args.n_gpu}, which means DataParallel; start it by torchrun")
        model.config.use_cache = args.use_cache  # as the Trainer does next
        give_filters(model, self._filters, *self._inputs(model))
        resize_when_loading(model)
        if trainer.optimizer is not None:
            check_held(model, [trainer.optimizer])
        make = trainer.create_optimizer
        trainer.create_optimizer = lambda *args: self._with_own_group(make, *args)

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **kw: Any
    ) -> None:
        if self._trainer is None:
            raise ShrinkError("Shrink: came too late; give it to Trainer(callbacks=[...])")
        inner = getattr(optimizer, "optimizer", optimizer)  # accelerate's has torch's own
        check_held(model, [inner])
        inputs, named = self._inputs(model)
        self.gc = GarbageCollector(
            self._trainer.model_wrapped, inputs, example_kwargs=named, optimizers=inner, **self._options
        )
        saved = Path(args.output_dir, f"checkpoint-{state.global_step}", STATE)
        if state.global_step and saved.exists():
            self.gc.load_state_dict(torch.load(saved, weights_only=True))
        self._penalty = Penalty(model, inner, self.lam)

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        if self.gc is not None and self.gc.step() is not None:
            self.gc.trim(waste=0)

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        found = scalars(model)
        should_log = control.should_log
        self._trainer.log({f"shrinknets/{name}": found[name] for name in ("features", "parameters")})
        control.should_log = should_log  # log() takes it back, and the Trainer's own numbers are still to come

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder = Path(args.output_dir, f"checkpoint-{state.global_step}")
        if self.gc is not None and state.is_world_process_zero and folder.exists():
            torch.save(dict(self.gc.state_dict()), folder / STATE)

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        if self._penalty is not None:
            self._penalty.remove()

    def _with_own_group(self, make: Any, *args: Any) -> Any:
        """The Trainer's optimizer, with the thetas in a group of their own: schedules and saved states are made for it."""
        fresh = self._trainer.optimizer is None
        optimizer = make(*args)
        if fresh and self.filter_lr is not None:
            own = list(thetas(self._trainer.model).values())
            ids = {id(theta) for theta in own}
            for group in optimizer.param_groups:
                group["params"] = [p for p in group["params"] if id(p) not in ids]
            optimizer.add_param_group({"params": own, "lr": self.filter_lr, "weight_decay": 0.0})
        return optimizer

    def _inputs(self, model: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        given = self._example
        args = (given,) if isinstance(given, torch.Tensor) else tuple(given)
        named = dict(self._kwargs or {})
        if not args and not named:
            named = dict(model.dummy_inputs)
        found: tuple[tuple[Any, ...], dict[str, Any]] = on_device((args, named), model)
        return found


def trainer_of(callback: Shrink) -> Any:
    """The Trainer that is being made with it: its hooks are not given it."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        own = frame.f_locals.get("self")
        if isinstance(own, Trainer) and any(known is callback for known in own.callback_handler.callbacks):
            return own
        frame = frame.f_back
    raise ShrinkError("Shrink: no Trainer around it; give it to Trainer(callbacks=[...])")


def from_pretrained(
    kind: Any,
    folder: str | Path,
    example_inputs: Inputs = (),
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> nn.Module:
    """The model that ``save_pretrained`` or a Trainer left in ``folder``, a local one, at its shrunk size and in eval mode.

    kind: its class. example_inputs, example_kwargs (None: ``dummy_inputs``) and options: as :func:`add_filters` had them.
    """
    from safetensors.torch import load_file

    files = sorted(Path(folder).glob("model*.safetensors"))
    if not files:
        raise ShrinkError(f"from_pretrained: {folder} holds no model.safetensors")
    state: dict[str, Any] = {}
    for file in files:
        state.update(load_file(file))
    model: Any = kind(kind.config_class.from_pretrained(folder))
    if any(name.endswith("theta") for name in state):
        callback = Shrink(example_inputs, lam=0.0, example_kwargs=example_kwargs)
        give_filters(model, options or True, *callback._inputs(model))
    own = model.state_dict(keep_vars=True)
    saved = {id(own[name]): name for name in state if name in own}
    for name, tensor in own.items():  # tied: the file has them once
        if name not in state and id(tensor) in saved:
            state[name] = state[saved[id(tensor)]]
    load_state_dict(model, state)
    loaded: nn.Module = model.eval()
    return loaded
