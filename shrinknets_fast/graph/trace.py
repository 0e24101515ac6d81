"""From a model to ATen graphs, one for training mode and one for evaluation mode, with every tensor's name."""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..errors import ShrinkError
from ..insides import NormBase
from ..sharded import is_sharded
from ..synced import of_one_rank
from .blame import blame, quiet, shortened
from .draws import same_draws
from .modules import copied
from .results import returning_tensors

Inputs = torch.Tensor | Sequence[Any]  # what a model's forward takes: one tensor, or its arguments


@dataclass(frozen=True)
class Traced:
    """One exported mode. ``tensors`` maps a placeholder's name to (dotted name in the model, the tensor itself)."""

    mode: str
    graph: torch.fx.Graph
    tensors: dict[str, tuple[str, torch.Tensor | None]]


@contextlib.contextmanager
def mode_of(model: nn.Module, training: bool) -> Iterator[None]:
    """All modules in one mode, and each back in its own afterwards.

    A batch norm's cumulative average (``momentum=None``) reads a counter, which no trace can do; any number stands in for it.
    """
    before = [(module, module.training) for module in model.modules()]
    cumulative = [m for m in model.modules() if isinstance(m, NormBase) and m.momentum is None]
    try:
        model.train(training)
        for norm in cumulative:
            norm.momentum = 0.1
        with of_one_rank(model):
            yield
    finally:
        for norm in cumulative:
            norm.momentum = None
        for module, flag in before:
            module.training = flag


def checked_inputs(
    model: nn.Module, example_inputs: Inputs, example_kwargs: Mapping[str, Any] | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """(args, kwargs) to call the model with, or an error that shows what its forward expects."""
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise ShrinkError(f"model is a {type(model).__name__}, expected the module inside it: model.module")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_sharded(tensor):
            raise ShrinkError(
                f"{name} is a DTensor, sharded by tensor parallelism, or before this call came to it; "
                "expected a model that fully_shard has sharded as a whole, and filters added before it"
            )
    args = (example_inputs,) if isinstance(example_inputs, torch.Tensor) else tuple(example_inputs)
    kwargs = dict(example_kwargs or {})
    try:
        inspect.signature(model.forward).bind(*args, **kwargs)
    except TypeError as error:
        raise ShrinkError(f"example_inputs do not fit {type(model).__name__}.forward: {error}") from None
    return args, kwargs


def lookup(model: nn.Module, name: str) -> torch.Tensor | None:
    """The parameter or buffer with this dotted name, or None."""
    path, _, leaf = name.rpartition(".")
    try:
        module = model.get_submodule(path)
    except AttributeError:
        return None
    return module._parameters.get(leaf, module._buffers.get(leaf))  # an attribute may be computed when it is read


def trace(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Traced]:
    """Both modes of ``model`` as ATen graphs. Nothing is run on real data and nothing of the model changes.

    A copy is traced, with the model's own tensors: what a forward keeps for later would be the trace's fake tensors.
    """
    own = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    traced = []
    for mode in ("train", "eval"):
        copy = copied(model, own)
        try:
            with (
                mode_of(copy, mode == "train"),
                returning_tensors(copy),
                same_draws(),
                torch.no_grad(),
                quiet(),
                warnings.catch_warnings(),
            ):
                warnings.filterwarnings(
                    "ignore", message="The tensor attributes? .*_flat_weights"
                )  # of recurrent layers
                program = torch.export.export(copy, args, kwargs, strict=False)
        except Exception as error:
            what = f"{type(model).__name__} cannot be traced in {mode} mode: {shortened(error)}{blame(error)}"
            advice = "use torch.where or torch.cond where values decide what is run"
            raise ShrinkError(f"{what}; torch.export must be able to: {advice}") from error
        signature = program.graph_signature
        names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        tensors = {placeholder: (name, lookup(model, name)) for placeholder, name in names.items()}
        traced.append(Traced(mode, program.graph_module.graph, tensors))
    return traced
