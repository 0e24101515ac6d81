"""group_norm: group norm over the alive channels of each group, the filter inside the affine pair; in torch's own operations.

With ``s = max(0, theta)``, mean and variance over a group's alive channels (theta > 0) and all their pixels in one sample, and
``r = 1 / sqrt(var + eps)``::

    xhat = (x - mean) r        y[c] = (xhat weight[c] + bias[c]) s[c]        0 where theta[c] <= 0

A dead channel is not counted and comes out as an exact zero, even where its x, weight or bias is NaN or infinite; a group
without an alive channel is zero. For the upstream gradient g, with ``h = g s weight``, ``G = sum of g xhat`` and ``b = sum of
g`` over all but channels, means over the alive::

    dx = r (h - mean(h) - xhat mean(h xhat))        dweight = s G      dbias = s b      dtheta = [theta > 0] (weight G + bias b)

Saved are x, mean and r, one each for a group of a sample, and the parameters. x: (B, C, ...); weight, bias: (C,) or None;
theta: (C,). float64, float32, float16 or bfloat16, mixed as you like: computed in float64 if any operand has it, else in
float32. Source: Wu and He 2018; ShrinkNets (Leclerc, Fernandez, Madden), equation 1.
"""

from __future__ import annotations

from typing import Any

import torch

from ..reference import affine_gradients, along, group_normed, scaled, widest
from .autograd import applied, once
from .checks import check_dtype, check_like, check_same_device, check_vector

LIBRARY = torch.library.Library("shrinknets_fast", "FRAGMENT")
LIBRARY.define(  # (y, mean, rstd), the latter (B, groups)
    "group_norm(Tensor x, Tensor? weight, Tensor? bias, Tensor theta, int groups, float eps) -> (Tensor, Tensor, Tensor)"
)
LIBRARY.define(  # what there is no argument for comes back empty
    "group_norm_backward(Tensor grad, Tensor x, Tensor mean, Tensor rstd, Tensor? weight, Tensor? bias, Tensor theta,"
    " int groups) -> (Tensor, Tensor, Tensor, Tensor)"
)
_group_norm = torch.ops.shrinknets_fast.group_norm
_group_norm_backward = torch.ops.shrinknets_fast.group_norm_backward
Optional = torch.Tensor | None


@torch.library.register_fake("shrinknets_fast::group_norm")
def _(
    x: torch.Tensor, weight: Optional, bias: Optional, theta: torch.Tensor, groups: int, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    check("group_norm", x, weight, bias, theta, groups)
    mean = x.new_empty((x.shape[0], groups), dtype=widest(x, weight, bias, theta))
    return torch.empty_like(x), mean, torch.empty_like(mean)


@torch.library.register_fake("shrinknets_fast::group_norm_backward")
def _(
    grad: torch.Tensor,
    x: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    weight: Optional,
    bias: Optional,
    theta: torch.Tensor,
    groups: int,
) -> tuple[torch.Tensor, ...]:
    check("group_norm_backward", x, weight, bias, theta, groups)
    check_like("group_norm_backward", "grad", grad, "x", x, "x", x)
    vectors = [x.new_empty(0) if t is None else t.new_empty(t.shape[0]) for t in (weight, bias, theta)]
    return torch.empty_like(x), *vectors


def check(op: str, x: torch.Tensor, weight: Optional, bias: Optional, theta: torch.Tensor, groups: int) -> None:
    """One line for what does not fit, with the argument and its value."""
    torch._check(x.dim() >= 2, lambda: f"{op}: x has shape {tuple(x.shape)}, expected (B, C, ...)")
    check_dtype(op, "x", x.dtype)
    for name, vector in (("theta", theta), ("weight", weight), ("bias", bias)):
        if vector is not None:
            check_dtype(op, name, vector.dtype)
            check_same_device(op, name, vector, "x", x)
            check_vector(op, name, vector, x.shape[1], f"dimension 1 of x {tuple(x.shape)}")
    torch._check(
        groups >= 1 and x.shape[1] % groups == 0,
        lambda: f"{op}: groups is {groups}, expected a divisor of the {x.shape[1]} channels of x",
    )


@torch.library.impl(LIBRARY, "group_norm", "CompositeExplicitAutograd")
def _(
    x: torch.Tensor, weight: Optional, bias: Optional, theta: torch.Tensor, groups: int, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    check("group_norm", x, weight, bias, theta, groups)
    y, mean, rstd = group_normed(x, weight, bias, theta, groups, eps)
    return torch.empty_like(x).copy_(y), mean, rstd


@torch.library.impl(LIBRARY, "group_norm_backward", "CompositeExplicitAutograd")
def _(
    grad: torch.Tensor,
    x: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    weight: Optional,
    bias: Optional,
    theta: torch.Tensor,
    groups: int,
) -> tuple[torch.Tensor, ...]:
    op = "group_norm_backward"
    check(op, x, weight, bias, theta, groups)
    check_like(op, "grad", grad, "x", x, "x", x)
    wide, ndim = widest(grad, x, weight, bias, theta), x.dim()
    alive, zero = along(~(theta <= 0), ndim, 1).expand_as(x), torch.zeros((), dtype=wide, device=x.device)
    per_channel = len(theta) // groups

    def over_channels(t: torch.Tensor) -> torch.Tensor:
        return t.to(wide).repeat_interleave(per_channel, 1).view(x.shape[0], len(theta), *[1] * (ndim - 2))

    g = torch.where(alive, grad.to(wide), zero)
    xhat = torch.where(alive, (x.to(wide) - over_channels(mean)) * over_channels(rstd), zero)
    folded = scaled(torch.ones_like(theta, dtype=wide) if weight is None else weight, theta, 0, wide)
    h = g * along(folded, ndim, 1)
    pixels = x.shape[2:].numel()
    count = (~(theta <= 0)).view(groups, per_channel).sum(1).mul(pixels).clamp(min=1)
    first, second = (t.reshape(x.shape[0], groups, per_channel * pixels).sum(2) / count for t in (h, h * xhat))
    dx = torch.where(alive, over_channels(rstd) * (h - over_channels(first) - xhat * over_channels(second)), zero)
    sums = [t.transpose(0, 1).reshape(len(theta), x.shape[0] * pixels).sum(1) for t in (g * xhat, g)]
    dweight, dbias, dtheta = affine_gradients(sums, weight, bias, theta)
    assert dtheta is not None  # there is always a theta
    none = x.new_empty(0)
    dx = torch.empty_like(x).copy_(dx)
    return dx, none if dweight is None else dweight, none.clone() if dbias is None else dbias, dtheta


class GroupNorm(torch.autograd.Function):
    generate_vmap_rule = True  # by a loop over the samples

    @staticmethod
    def forward(
        x: torch.Tensor, weight: Optional, bias: Optional, theta: torch.Tensor, groups: int, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return _group_norm(x, weight, bias, theta, groups, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, weight, bias, theta, ctx.groups, _ = inputs
        _, mean, rstd = output
        ctx.save_for_backward(x, mean, rstd, weight, bias, theta)
        ctx.mark_non_differentiable(mean, rstd)
        ctx.set_materialize_grads(False)

    @staticmethod
    @once
    def backward(ctx: Any, grad: torch.Tensor | None, *none: Any) -> tuple[torch.Tensor | None, ...]:
        if grad is None:
            return None, None, None, None, None, None
        *saved, weight, bias, theta = ctx.saved_tensors
        dx, dweight, dbias, dtheta = _group_norm_backward(grad, *saved, weight, bias, theta, ctx.groups)
        return dx, None if weight is None else dweight, None if bias is None else dbias, dtheta, None, None


_apply = applied(GroupNorm, group_normed)


def group_norm(
    x: torch.Tensor, weight: Optional, bias: Optional, theta: torch.Tensor, groups: int, eps: float
) -> torch.Tensor:
    """The norm of each group's alive channels; see the module's docstring. Differentiable once."""
    return _apply(x, weight, bias, theta, groups, eps)[0]
