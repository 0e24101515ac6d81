"""Quick results on meta tensors for the ops whose own kernel for them is Python that takes up to a millisecond."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..insides import TorchDispatchMode

aten = torch.ops.aten

# (x, *numbers) -> a tensor like x, or x itself where it is changed in place
LIKE = {getattr(aten, name).default for name in ("relu", "gelu", "silu", "sigmoid", "tanh", "hardtanh", "leaky_relu")}
IN_PLACE = {getattr(aten, name).default for name in ("relu_", "silu_", "hardtanh_", "leaky_relu_")}


class Shapes(TorchDispatchMode):
    """Answers the common case of a common op (dense, one dtype, sizes that fit); torch answers, or refuses, the rest."""

    supports_higher_order_operators = True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = quick(func, args) if not kwargs else None
        return func(*args, **(kwargs or {})) if result is None else result


def quick(func: Any, args: Sequence[Any]) -> Any:
    """The result of ``func(*args)``, or None for what torch must see."""
    if func in IN_PLACE:
        return args[0] if plain(args[0]) else None
    if func in LIKE:
        return args[0].new_empty(args[0].shape) if plain(args[0]) else None
    rule = RULES.get(func)
    return rule(*args) if rule else None


def plain(*tensors: torch.Tensor | None) -> bool:
    """Whether these are floating-point meta tensors of one dtype, without gaps or subclass; None is left out."""
    first = tensors[0]
    return (
        first is not None
        and all(
            t is None
            or type(t) in (torch.Tensor, torch.nn.Parameter)
            and t.is_meta
            and t.dtype == first.dtype
            and t.is_contiguous()
            for t in tensors
        )
        and torch.is_floating_point(first)
    )


def vectors(size: Sequence[int], *tensors: torch.Tensor | None) -> bool:
    return all(t is None or tuple(t.shape) == tuple(size) for t in tensors)


def addmm(bias: torch.Tensor | None, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor | None:
    if plain(bias, x) and x.dim() == 2 and weight.dtype == x.dtype and weight.dim() == 2:
        if x.shape[1] == weight.shape[0] and vectors(weight.shape[1:], bias):
            return x.new_empty(x.shape[0], weight.shape[1])
    return None


def batch_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    mean: torch.Tensor | None,
    var: torch.Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[torch.Tensor, ...] | None:
    channels = x.shape[1:2]
    if plain(x, weight, bias, mean, var) and x.dim() > 1 and vectors(channels, weight, bias, mean, var):
        saved = channels if training else (0,)
        return x.new_empty(x.shape), x.new_empty(saved), x.new_empty(saved)
    return None


def layer_norm(
    x: torch.Tensor, size: Sequence[int], weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float
) -> tuple[torch.Tensor, ...] | None:
    lead = x.dim() - len(size)
    if plain(x, weight, bias) and lead >= 0 and vectors(size, x[(0,) * lead], weight, bias):
        saved = (*x.shape[:lead], *[1] * len(size))
        return x.new_empty(x.shape), x.new_empty(saved), x.new_empty(saved)
    return None


RULES: dict[Any, Callable[..., Any]] = {
    aten.addmm.default: addmm,
    aten.native_batch_norm.default: batch_norm,
    aten.native_layer_norm.default: layer_norm,
}
