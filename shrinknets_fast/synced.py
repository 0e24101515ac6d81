"""Batch norm with the statistics of all ranks, on devices for which torch has none.

``y = (x - m) r w + b`` with mean ``m`` and ``r = 1 / sqrt(v + eps)`` over the entries of all ranks. With ``S = sum dy`` and
``T = sum dy (x - m)``, also of all ranks, and N entries: ``dx = w r (dy - S / N - (x - m) r^2 T / N)``. Ioffe and Szegedy 2015.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from .errors import ShrinkError
from .insides import BatchNorm, SyncBatchNormFunction


def group_of(norm: Any) -> Any:
    """The process group over which a norm has its statistics now, or None where it has its own."""
    distributed: Any = torch.distributed
    if not norm.training or not distributed.is_available() or not distributed.is_initialized():
        return None
    group = norm.process_group or distributed.group.WORLD
    return group if distributed.get_world_size(group) > 1 else None


@contextlib.contextmanager
def of_one_rank(model: nn.Module) -> Iterator[None]:
    """Inside, no norm asks another rank, as a trial must not: each is the norm of one rank, which has the same features.

    Nor does torch's refuse the CPU.
    """
    plain = [m for m in model.modules() if isinstance(m, nn.SyncBatchNorm)]
    filtered: list[Any] = [m for m in model.modules() if getattr(m, "plain", None) is nn.SyncBatchNorm]
    try:
        for norm in plain:
            norm.forward = types.MethodType(BatchNorm.forward, norm)  # type: ignore[method-assign]
        for norm in filtered:
            norm.function = norm.function_of_one
        yield
    finally:
        for norm in plain:
            del norm.forward
        for norm in filtered:
            del norm.function


def synced_batch_norm(
    input: torch.Tensor,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    momentum: float,
    eps: float,
    group: Any,
) -> torch.Tensor:
    """As ``torch.nn.functional.batch_norm`` in training, over all ranks of ``group``."""
    if not input.is_cpu:
        size = torch.distributed.get_world_size(group)
        function: Any = SyncBatchNormFunction
        return function.apply(input, weight, bias, running_mean, running_var, eps, momentum, group, size)
    mean, variance, count = statistics(input, group)
    if count < 2:
        raise ShrinkError(
            f"FilteredSyncBatchNorm: {count} entry per channel on all ranks together, expected more than 1"
        )
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((variance * (count / (count - 1))).to(running_var.dtype), momentum)
    bias = torch.zeros_like(weight) if bias is None else bias
    return Synced.apply(input, weight, bias, mean, (variance + eps).rsqrt(), count, group)


def over_features(vector: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return vector.view(-1, *[1] * (like.dim() - 2))


def all_but_features(x: torch.Tensor) -> list[int]:
    return [d for d in range(x.dim()) if d != 1]


@torch.no_grad()
def statistics(x: torch.Tensor, group: Any) -> tuple[torch.Tensor, torch.Tensor, int]:
    """(mean, biased variance, entries per channel) over all ranks, which may have different numbers of them."""
    dims, wide = all_but_features(x), x.double()
    count = torch.tensor([x.numel() // x.shape[1]], dtype=torch.float64)
    sums = torch.cat([wide.sum(dims), count])
    torch.distributed.all_reduce(sums, group=group)
    mean = sums[:-1] / sums[-1]
    squares = (wide - over_features(mean, x)).square().sum(dims)
    torch.distributed.all_reduce(squares, group=group)
    return mean.to(x.dtype), (squares / sums[-1]).to(x.dtype), int(sums[-1])


class Synced(torch.autograd.Function):
    @staticmethod
    def forward(
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        mean: torch.Tensor,
        rate: torch.Tensor,
        count: int,
        group: Any,
    ) -> torch.Tensor:
        scale = rate * weight.to(x.dtype)
        return (x - over_features(mean, x)) * over_features(scale, x) + over_features(bias.to(x.dtype), x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        x, weight, _, mean, rate, ctx.count, ctx.group = inputs
        ctx.save_for_backward(x, weight, mean, rate)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, mean, rate = ctx.saved_tensors
        dims, centred = all_but_features(x), x - over_features(mean, x)
        own = torch.stack([dy.sum(dims), (dy * centred).sum(dims)])
        of_all = own.clone()
        torch.distributed.all_reduce(of_all, group=ctx.group)
        first, second = of_all / ctx.count
        dx = dy - over_features(first, x) - centred * over_features(rate.square() * second, x)
        dx = dx * over_features(rate * weight.to(x.dtype), x)
        return dx, (own[1] * rate).to(weight.dtype), own[0].to(weight.dtype), None, None, None, None
