"""``weight`` and ``bias`` of a filtered layer are those of its function: with the filter in them.

Tools that fuse, merge, prune or convert layers ask ``isinstance(m, nn.Linear)`` and use ``m.weight``. The parameter alone is
another function's weight, off by the factor max(0, theta) of each feature. So the attribute is computed, as torch's own
parametrizations compute theirs; ``parameters()``, ``state_dict()`` and :func:`unfolded` have the parameters themselves.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import nn

from .errors import ShrinkError
from .folded_tensor import WAY_OUT, FoldedTensor, Source
from .insides import is_wrapped
from .ops.filter import filter
from .ops.fold import fold
from .sharded import asked_by_torch, is_sharded

__all__ = ["FoldedReads", "has_theta", "is_unfolded", "unfolded"]

Activation = Literal["relu"]
Init = float | Literal["uniform"]

_unfolded = contextvars.ContextVar("unfolded", default=False)
PARAMETRIZED = "parametrize a plain layer, and put a Filter behind it"

if TYPE_CHECKING:

    class Layer(nn.Module):
        """What the mixins find behind them: a layer of torch.nn, and what the filtered one adds."""

        plain: ClassVar[type[nn.Module]]
        theta: nn.Parameter
        init: Init
        owns_theta: bool
        neighbours: int
        blocks: int

        @property
        def repeated_theta(self) -> torch.Tensor: ...

        activation: Activation | None

        def __init__(self, *args: Any, **kw: Any) -> None: ...
        def __call__(self, input: torch.Tensor) -> torch.Tensor: ...
        def reset_parameters(self) -> None: ...

else:
    Layer = object  # a mixin's own annotations would be torch.jit's, which reads them


@contextlib.contextmanager
def unfolded() -> Iterator[None]:
    """Inside, ``weight`` and ``bias`` of filtered layers are the parameters: to initialise, to assign, to see their gradients."""
    token = _unfolded.set(True)
    try:
        yield
    finally:
        _unfolded.reset(token)


def is_unfolded() -> bool:
    return not torch.compiler.is_compiling() and _unfolded.get()


def folded(layer: FoldedReads, name: str) -> torch.Tensor | None:
    value, theta = layer.raw(name), layer.repeated_theta
    if value is not None:
        value = fold_weight(layer, value, theta) if name == "weight" else fold(value, None, theta)[0]
    elif name == "weight":  # a batch norm without affine parameters still has its filter
        value = filter(torch.ones_like(theta), theta, 0)
    if torch.compiler.is_compiling() or type(value) is not torch.Tensor or is_wrapped(value):
        return value
    return Source(layer, name, value).tensor(value, False)


def fold_weight(layer: FoldedReads, weight: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
    rows = weight.transpose(0, layer.weight_dim)
    if layer.weight_offset:
        return fold(rows + layer.weight_offset, None, theta)[0] - layer.weight_offset
    return fold(rows, None, theta)[0].transpose(0, layer.weight_dim)


def has_theta(layer: nn.Module) -> bool:
    """Not yet while a layer is made. Pruned, parametrized or replicated, a theta is no parameter of that name."""
    return "theta" in layer._parameters or hasattr(layer, "theta")


def computed(name: str) -> property:
    """A property that reads the parameter ``name`` with the layer's filter folded in."""

    def read(layer: FoldedReads) -> torch.Tensor | None:
        if name not in layer._parameters and name not in layer.__dict__:
            raise AttributeError(name)  # torch.nn.Module.__getattr__ then says it in its own words
        if is_unfolded() or not has_theta(layer):
            return layer.raw(name)
        if is_sharded(layer.raw(name)):
            if asked_by_torch():
                return layer.raw(name)
            kind = f"{type(layer).__name__}.{name}"
            raise ShrinkError(f"{kind} is sharded, so it cannot be read with its filter in it; {WAY_OUT}")
        try:
            return folded(layer, name)
        except AttributeError as error:  # would send Python to the parameter
            raise RuntimeError(f"{type(layer).__name__}.{name} cannot be read: {error}") from error

    def write(layer: FoldedReads, value: torch.Tensor) -> None:
        # pruning's; torch.nn.Module.__setattr__ takes parameters itself, and refuses the rest
        layer.__dict__[name] = value

    def delete(layer: FoldedReads) -> None:
        del layer.__dict__[name]

    return property(read, write, delete, f"``{name}`` with max(0, theta) in it; see :func:`unfolded`.")


def is_affine(name: str) -> property:
    """As ``weight`` is the function's, so is this attribute: a filter is an affine weight."""

    def read(norm: nn.Module) -> bool:
        return norm.__dict__[name] or (has_theta(norm) and not is_unfolded())

    def write(norm: nn.Module, value: bool) -> None:
        norm.__dict__[name] = value

    return property(read, write)


class FoldedReads(Layer):
    """Mixin of the filtered layers that have a weight and a bias.

    It has no ``__setattr__``: fully_shard swaps parameters past register_parameter only where that is torch.nn.Module's own.
    """

    __jit_unused_properties__ = ["weight", "bias", "alive", "repeated_theta"]
    weight_dim = 0  # along which it makes features
    weight_offset = 0.0  # the layer computes with weight + weight_offset
    if TYPE_CHECKING:
        weight: torch.Tensor
        bias: torch.Tensor | None
    else:
        weight = computed("weight")
        bias = computed("bias")

    def raw(self, name: str) -> torch.Tensor | None:
        """The parameter ``name``, or what pruning has put in its place; None where there is none."""
        value = self._parameters.get(name)
        return self.__dict__.get(name) if value is None else value

    def raw_parameters(self, input: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """(weight, bias, theta) to compute with."""
        if isinstance(input, torch.fx.Proxy):
            raise ShrinkError(
                f"{type(self).__name__} cannot be traced by torch.fx, which reads weights by name and would filter them again; "
                "trace what fold_filters(model) gives, or use torch.export"
            )
        weight: Any = self.raw("weight")  # None in a batch norm without affine parameters alone
        return weight, self.raw("bias"), self.repeated_theta

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        if isinstance(param, FoldedTensor):
            if param.source.layer is not self:
                raise ShrinkError(param.source.advice(f"register_parameter({name!r})"))
            param = param.source.parameter  # as pruning keeps it, under another name
        elif name in ("weight", "bias") and param is not None and not is_unfolded():
            if name in self._parameters and has_theta(self):
                kind = f"{type(self).__name__}.{name}"
                raise ShrinkError(f"{kind} is assigned, and the layer would multiply it by max(0, theta); {WAY_OUT}")
        super().register_parameter(name, param)

    def __delattr__(self, name: str) -> None:
        if name in ("weight", "bias") and name in self._parameters:  # as parametrizations begin
            raise ShrinkError(f"{type(self).__name__}.{name} cannot be computed in another way; {PARAMETRIZED}")
        super().__delattr__(name)

    def reset_parameters(self) -> None:
        with unfolded():
            super().reset_parameters()

    def _load_from_state_dict(self, *args: Any) -> None:
        with unfolded():  # assign=True sets the attributes
            super()._load_from_state_dict(*args)
