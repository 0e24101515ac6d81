"""Norms that a module writes out for itself, or with its channels elsewhere, known by what they compute.

A module with a weight, perhaps a bias, and nothing else, is played on random numbers, and compared with layer and RMS norm. What
is found is read as one op, whatever its forward calls.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from .modules import EVERY_MODULE
from .op import Masks
from .value import Value, Zeros

if TYPE_CHECKING:
    from .module_op import ModuleOp

SIZE = 6
_known: dict[tuple[Any, ...], Norm | None] = {}  # class, attributes, whether it has a bias


@dataclass(frozen=True)
class Norm:
    """``kind``: "layer_norm" or "rms_norm", over ``dim``, times (weight + ``offset``)."""

    kind: str
    dim: int
    eps: float
    offset: float

    def __call__(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        moved, weight = x.movedim(self.dim, -1), weight + self.offset
        if self.kind == "rms_norm":
            return F.rms_norm(moved, weight.shape, weight, self.eps).movedim(-1, self.dim)
        return F.layer_norm(moved, weight.shape, weight, bias, self.eps).movedim(-1, self.dim)

    def read(self, op: ModuleOp) -> Value:
        """The rule of a call."""
        x = op.inputs[0]
        axes, dim = op.axes(x), self.dim % x.ndim
        own = [op.parameter(name) for name in ("weight", "bias") if op.has(name)]
        for value in own:
            op.unify(axes[dim], op.axis(value, 0))

        def zero(zeros: Zeros) -> Masks:
            return [None if d == dim or len(own) > 1 else zeros(x, d) for d in range(x.ndim)]

        result = op.output(axes, zero)
        op.counts(result, dim, f"is normalised with others by {op.label}, which counts its features")
        return result


def norm_of(module: nn.Module) -> Norm | None:
    """What a module computes, where that is a norm over features which torch.nn has not in this form."""
    weight, bias = module._parameters.get("weight"), module._parameters.get("bias")
    if (
        type(module).__module__.startswith("torch.nn.modules.")
        or hasattr(module, "theta")
        or weight is None
        or weight.dim() != 1
    ):
        return None
    others = [p for name, p in module._parameters.items() if p is not None and name not in ("weight", "bias")]
    buffers = [b for b in module._buffers.values() if b is not None]
    if others or module._modules or buffers or not weight.is_floating_point():
        return None
    own = {name: value for name, value in vars(module).items() if name not in EVERY_MODULE}
    plain = tuple(sorted((k, v) for k, v in own.items() if is_plain(v)))
    key = (type(module), plain, bias is not None)
    if key not in _known:
        epsilons = {value for _, value in plain if isinstance(value, float) and 0 < value < 0.1}
        _known[key] = next(compared(small_copy(module), epsilons, bias is not None), None)
    return _known[key]


def is_plain(value: Any) -> bool:
    return isinstance(value, (int, float, str)) or isinstance(value, tuple) and all(map(is_plain, value))


def small_copy(module: nn.Module) -> nn.Module:
    """Of another size: one that keeps its own is resized by name."""
    twin = object.__new__(type(module))
    twin.__dict__.update(vars(module))
    twin._parameters, twin._forward_hooks, twin._forward_pre_hooks = dict(module._parameters), {}, {}
    weight = module._parameters["weight"]
    size = 0 if weight is None else weight.numel()
    for name, value in vars(module).items():
        if name not in EVERY_MODULE and is_plain(value) and value in (size, (size,)):
            vars(twin)[name] = SIZE if value == size else (SIZE,)
    return twin


@torch.no_grad()
def compared(module: nn.Module, epsilons: set[float], has_bias: bool) -> Iterator[Norm]:
    draws = torch.Generator().manual_seed(0)
    weight = torch.rand(SIZE, generator=draws) + 0.5
    bias = torch.randn(SIZE, generator=draws) if has_bias else None
    given = {"weight": weight} | ({} if bias is None else {"bias": bias})
    for shape, dim in (((2, 3, SIZE), -1), ((2, SIZE, 3, 4), 1), ((2, 3, 4, SIZE), -1)):
        x = torch.randn(shape, generator=draws) * 0.01  # small, so that eps can be told
        try:
            y = functional_call(module, given, (x,))
        except Exception:  # it takes no such shape
            continue
        for norm in (
            Norm(kind, dim, eps, offset)
            for kind in ("rms_norm", "layer_norm")
            for eps in epsilons
            for offset in (0.0, 1.0)
        ):
            expected = norm(x, weight, bias)
            if isinstance(y, torch.Tensor) and y.shape == x.shape and torch.allclose(y, expected, rtol=1e-5, atol=1e-6):
                yield norm
        return
