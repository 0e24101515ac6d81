"""A Callback for Lightning's Trainer."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..checkpoint import shapes_in
from ..collector import GarbageCollector
from ..errors import ShrinkError
from ..filters import named_filters
from ..graph.trace import Inputs
from ..sharded import is_sharded
from .common import Filters, add_gradient, check_held, checked_lam, give_filters, on_device, resize_when_loading
from .tensorboard import scalars

USED = (
    "pytorch_lightning"
    if "pytorch_lightning" in sys.modules and "lightning.pytorch" not in sys.modules
    else "lightning.pytorch"
)
try:
    Callback: Any = importlib.import_module(USED).Callback
except ImportError as error:
    raise ImportError("shrinknets_fast.integrations.lightning needs lightning: pip install lightning") from error

SUPPORTED = {"SingleDeviceStrategy", "DDPStrategy", "ModelParallelStrategy"}
AVERAGES = {"StochasticWeightAveraging", "WeightAveraging"}


class Restoring:
    """In place of ``strategy.load_checkpoint``: the last moment at which a sharded module can take the checkpoint's sizes."""

    def __init__(self, strategy: Any) -> None:
        self._strategy, self._load = strategy, strategy.load_checkpoint

    @classmethod
    def at(cls, strategy: Any) -> None:
        if not isinstance(strategy.load_checkpoint, cls):
            strategy.load_checkpoint = cls(strategy)

    def __call__(self, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Any:
        module = self._strategy.lightning_module
        resizing = resize_when_loading(module)
        if any(map(is_sharded, module.parameters())):
            path = Path(self._strategy.broadcast(checkpoint_path))
            resizing.fit(module, saved_shapes(path), strict=module.strict_loading)
        return self._load(checkpoint_path, *args, **kwargs)


def saved_shapes(path: Path) -> dict[str, Any]:
    """{name in the module: a tensor of its shape}, of a file, or of a folder with the parts of all ranks."""
    if path.is_dir():
        from torch.distributed.checkpoint.filesystem import FileSystemReader

        return shapes_in(FileSystemReader(path).read_metadata().state_dict_metadata, "state_dict.")
    state: dict[str, Any] = torch.load(path, mmap=True, map_location="meta", weights_only=False)["state_dict"]
    return state


class Shrink(Callback):
    """Gives the module its filters, adds the penalty, collects after optimizer steps and logs what is left.

    example_inputs, example_kwargs: of the module's forward (None: its ``example_input_array``). lam: the penalty's weight, may be
    changed. filters: options of :func:`add_filters` for a module that has none (True: the defaults, False: it has its own).
    options: those of :class:`GarbageCollector`.

    The penalty's gradient is added once per optimizer step, to gradients that are accumulated and unscaled, before clipping: as
    if it stood in the loss. Checkpoints resize the module when Lightning loads them. ``gc``: the collector, during fit.
    """

    def __init__(
        self,
        example_inputs: Inputs | None = None,
        *,
        lam: float,
        example_kwargs: Mapping[str, Any] | None = None,
        filters: Filters = True,
        **options: Any,
    ) -> None:
        self.lam = checked_lam(lam)
        self.gc: GarbageCollector | None = None
        self.collections = 0
        self._example, self._kwargs, self._filters = example_inputs, dict(example_kwargs or {}), filters
        self._options = options
        self._state: dict[str, Any] = {}
        self._step = 0

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        names = {kind.__name__ for kind in type(trainer.strategy).__mro__}
        if not names & SUPPORTED:
            strategy = type(trainer.strategy).__name__
            raise ShrinkError(
                f"Shrink: strategy is {strategy}, expected one device, DDP, or ModelParallelStrategy with fully_shard"
            )
        if "ModelParallelStrategy" in names and (size := trainer.strategy.device_mesh["tensor_parallel"].size()) > 1:
            raise ShrinkError(f"Shrink: tensor_parallel_size is {size}, expected 1: fully_shard alone")
        for callback in trainer.callbacks:
            if {kind.__name__ for kind in type(callback).__mro__} & AVERAGES:
                kind = type(callback).__name__
                raise ShrinkError(f"Shrink: {kind} keeps a copy of the weights that would not shrink; leave it out")
        if next(pl_module.parameters(), None) is not None:  # else configure_model makes them
            give_filters(pl_module, self._filters, *self._inputs(pl_module))
            resize_when_loading(pl_module)
        Restoring.at(trainer.strategy)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        if not named_filters(pl_module):
            kind = type(pl_module).__name__
            raise ShrinkError(
                f"Shrink: {kind} has no filters; where configure_model makes layers, call sn.add_filters too"
            )
        check_held(pl_module, trainer.optimizers)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:  # later than what a checkpoint restores
        args, kwargs = self._inputs(pl_module)
        model = trainer.strategy.model
        self.gc = GarbageCollector(model, args, example_kwargs=kwargs, optimizers=trainer.optimizers, **self._options)
        if self._state:
            self.gc.load_state_dict(self._state)
        self._step = trainer.global_step

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        scaler: Any = getattr(trainer.precision_plugin, "scaler", None)
        own = scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False)
        add_gradient(pl_module, optimizer, self.lam, scaler.get_scale() if own else 1.0)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
        if self.gc is None or trainer.global_step == self._step:
            return  # gradients are being accumulated
        self._step = trainer.global_step
        if self.gc.step() is not None:
            self.collections += 1
            self.gc.trim(waste=0)  # checkpoints hold whole storages

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        found = scalars(pl_module)
        pl_module.log_dict({f"shrinknets/{name}": found[name] for name in ("features", "parameters")})

    def state_dict(self) -> dict[str, Any]:
        state = {} if self.gc is None else dict(self.gc.state_dict())
        return {"gc": state, "collections": self.collections}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._state, self.collections = state_dict["gc"], state_dict["collections"]

    def _inputs(self, module: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        given = module.example_input_array if self._example is None and not self._kwargs else self._example
        if given is None and not self._kwargs:
            raise ShrinkError(f"Shrink: {type(module).__name__} has no example_input_array; give example_inputs")
        args = () if given is None else (given,) if isinstance(given, torch.Tensor) else tuple(given)
        found: tuple[tuple[Any, ...], dict[str, Any]] = on_device((args, self._kwargs), module)
        return found


def load_from_checkpoint(
    kind: Any,
    checkpoint_path: Any,
    example_inputs: Inputs | None = None,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    filters: Filters = True,
    **options: Any,
) -> Any:
    """``kind.load_from_checkpoint(checkpoint_path, **options)`` at the checkpoint's sizes; kind: the LightningModule's class.

    Plain ``load_from_checkpoint`` makes the module without the filters that :class:`Shrink` gave it, so torch refuses it.
    example_inputs, example_kwargs, filters: as for :class:`Shrink`. Raises ShrinkError where names or sizes do not fit.
    """
    callback = Shrink(example_inputs, lam=0.0, example_kwargs=example_kwargs, filters=filters)

    def on_load_checkpoint(module: Any, checkpoint: dict[str, Any]) -> None:
        if any(name.endswith("theta") for name in checkpoint["state_dict"]):
            give_filters(module, filters, *callback._inputs(module))
        resize_when_loading(module)
        kind.on_load_checkpoint(module, checkpoint)

    # Lightning makes the module and loads it in one call, and asks only its class in between
    loading: Any = type(
        kind.__name__, (kind,), {"on_load_checkpoint": on_load_checkpoint, "__module__": kind.__module__}
    )
    module = loading.load_from_checkpoint(checkpoint_path, **options)
    module.__class__ = kind
    return module
