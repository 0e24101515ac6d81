"""From a trained model to plain torch.nn: filters folded into the weights, dead features gone."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from .collector import GarbageCollector
from .companions import Companions
from .depth.gated import Gated, nothing
from .errors import ShrinkError
from .filters import REMOVE, named_filters, thetas
from .folded import FoldedReads, fold_weight
from .graph.constants import Constants, forgiven, move_into_biases
from .graph.modules import copied
from .graph.reading import Reading, example_of
from .graph.trace import Inputs
from .memory import trim
from .nn import Filter, FilterBase
from .norm_parts import COUNTING, of_parts
from .ops.fold import fold
from .placement import replace
from .recurrent import FilteredRecurrent, folded_recurrent
from .saving import check_saves
from .work import prepare
from .wrapped import unwrapped
from .written_out import WrittenOut

__all__ = ["fold_filters"]


class _Scale(nn.Module):
    """Traced into a torch.fx module, whose class and code belong to torch, not to this package.

    Its annotations are objects: before 2.14, torch.fx cannot pickle a module whose annotations are strings.
    """

    scale: torch.Tensor

    def __init__(self, scale: torch.Tensor, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.register_buffer("scale", scale)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.scale.numel() == 1:
            return input * self.scale
        return (input.transpose(self.dim, -1) * self.scale).transpose(self.dim, -1)


@torch.no_grad()
def fold_filters(
    model: nn.Module,
    example_inputs: Inputs | None = None,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    align: int = 1,
    min_alive: int = 1,
    uniform: str | Iterable[str] = (),
) -> nn.Module:
    """A plain ``torch.nn`` copy of ``model`` for inference: theta folded, dead features gone, no need of this package.

    Dead features that are a constant where they are read (behind a sigmoid, say) leave too: the readers' biases take them over.

    ``FilteredLinear`` becomes ``nn.Linear`` (with ``activation="relu"``: ``nn.Sequential`` of it and ``nn.ReLU``), and so on; a
    stand-alone ``Filter`` becomes a product with a constant. ``model`` itself does not change.

    example_inputs: needed only if features are dead and no collector was made for this model. align, min_alive, uniform: sizes of
    the copy, as for :class:`GarbageCollector`; by default no padding stays.
    """
    model = unwrapped(model)
    thetas(model)  # raises where one is no parameter
    for name, module in named_filters(model).items():
        if isinstance(module, FoldedReads) and any(
            hasattr(module, own) and own not in module._parameters for own in ("weight", "bias")
        ):
            what = f"{name or type(module).__name__} has a weight or bias that a parametrization or pruning computes"
            raise ShrinkError(f"fold_filters: {what}; {REMOVE}")
    plain = copied(model)
    if any(not bool(m.alive.all()) for m in named_filters(plain).values()):
        args, kwargs = known_inputs(model, example_inputs, example_kwargs)
        gc = GarbageCollector(plain, args, example_kwargs=kwargs, align=align, min_alive=min_alive, uniform=uniform)
        gc.collect()
        collect_constants(gc._reading, gc._companions)
    for gated in [m for m in plain.modules() if isinstance(m, Gated)]:
        left = nothing() if gated.vanished else nn.Sequential(gated[0], gated.gate)
        replace(plain, gated, left.train(gated.training))
    for module in named_filters(plain).values():
        new = folded(module)
        if module is plain:
            plain = new
        elif new is not module:
            replace(plain, module, new)
    for p in plain.parameters():
        p.grad = None
    check_saves(plain, example_of(model) if example_inputs is None else as_called(example_inputs, example_kwargs))
    trim([*plain.parameters(), *plain.buffers()], waste=0)
    return plain


def collect_constants(reading: Reading, companions: Companions) -> None:
    """Also remove dead features that are a constant where they are read, such as sigmoid(0).

    The biases that exist take the constants over, where that is exact (not across zero padding).
    """
    constants = Constants(reading.network, dead := reading.watch.masks())
    may = forgiven(reading.model, reading.network, constants)
    work = prepare(reading, companions, lambda: reading.plan(dead, forgiven=may))
    move_into_biases(reading.model, reading.network, constants, work.plan.gone)
    work.commit()


def as_called(inputs: Inputs, kwargs: Mapping[str, Any] | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (inputs,) if isinstance(inputs, torch.Tensor) else tuple(inputs), dict(kwargs or {})


def known_inputs(
    model: nn.Module, example_inputs: Inputs | None, example_kwargs: Mapping[str, Any] | None
) -> tuple[Inputs, Mapping[str, Any] | None]:
    if example_inputs is not None:
        return example_inputs, example_kwargs
    example = example_of(model)
    if example is None:
        raise ShrinkError(
            f"fold_filters: {type(model).__name__} has dead features and no collector was made for it; pass example_inputs"
        )
    return example


def folded(module: FilterBase) -> nn.Module:
    """The plain twin of one filtered module: the same object with another class, or a new module in its place."""
    if isinstance(module, Filter):
        scale = module.repeated_theta.detach().clamp(min=0)
        return torch.fx.symbolic_trace(_Scale(scale, module.dim)).train(module.training)
    if isinstance(module, FilteredRecurrent):
        return folded_recurrent(module)
    layer: Any = module  # of another class afterwards
    weight, bias = layer.raw("weight"), layer.raw("bias")
    if isinstance(module, COUNTING) and not bool(module.alive.all()):
        return of_parts(layer)
    if isinstance(module, WrittenOut) and not bool(module.alive.all()):
        what = f"dead features of a {module.plain.__name__} cannot leave, and it would count them"
        raise ShrinkError(f"fold_filters: {what}; expected none, as after a collection without align or min_alive")
    bare = weight is None
    theta = layer.repeated_theta
    weight = theta.clamp(min=0) if bare else fold_weight(layer, weight, theta).contiguous()
    bias = None if bias is None else fold(bias, None, theta)[0]
    activation = layer.activation
    del layer.theta
    for name in ("init", "owns_theta", "activation", "neighbours", "blocks"):
        layer.__dict__.pop(name, None)
    layer.__class__ = layer.plain
    if bare:  # a norm without affine parameters gets them now
        bias = torch.zeros_like(weight) if "bias" in layer._parameters else None
        setattr(layer, "affine" if "affine" in layer.__dict__ else "elementwise_affine", True)
    layer.weight = nn.Parameter(without_subnormals(weight))
    if bias is not None:
        layer.bias = nn.Parameter(without_subnormals(bias))
    return nn.Sequential(layer, nn.ReLU()).train(layer.training) if activation == "relu" else layer


def without_subnormals(tensor: torch.Tensor) -> torch.Tensor:
    """A copy with zeros for subnormal numbers: a tiny theta makes them, and CPUs are many times slower on them."""
    return torch.where(tensor.abs() < torch.finfo(tensor.dtype).tiny, torch.zeros_like(tensor), tensor).detach()
