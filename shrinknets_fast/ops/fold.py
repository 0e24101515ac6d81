"""fold: a filter folded into a layer's weight and bias, so that it costs weight-sized traffic instead of activations.

With ``s = max(0, theta)`` per row k of dimension 0::

    weight'[k] = s[k] * weight[k]        bias'[k] = s[k] * bias[k]          both cast to ``dtype`` in the same pass

Dead rows (theta <= 0) come out as exact zeros whatever they hold. For upstream gradients G and g, in one pass::

    dweight = s G      dbias = s g      dtheta[k] = [theta[k] > 0] (<G[k], weight[k]> + g[k] bias[k])

so neither an activation is saved for theta nor one reduced. weight: (C, ...) with any strides and 1 to 8 dimensions; bias: (C,)
or None; theta: (C,). float64, float32, float16 or bfloat16, mixed as you like: computed in float64 if any operand has it,
else in float32.
Source: ShrinkNets (Leclerc, Fernandez, Madden), equation 1, and ``(x W^T + b) * s = x (s W)^T + s b``.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from ..insides import register_decomposition
from ..reference import scaled, widest
from .autograd import applied, direct, eager, once
from .checks import check_dtype, check_like, check_same_device, check_vector

_fold = torch.ops.shrinknets_fast.fold.default
_fold_backward = torch.ops.shrinknets_fast.fold_backward.default


@torch.library.register_fake("shrinknets_fast::fold")
def _(
    weight: torch.Tensor, bias: torch.Tensor | None, theta: torch.Tensor, dtype: torch.dtype | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    check("fold", weight, bias, theta)
    dtype = dtype or weight.dtype
    check_dtype("fold", "dtype", dtype)
    return torch.empty_like(weight, dtype=dtype), weight.new_empty(0 if bias is None else bias.shape[0], dtype=dtype)


@torch.library.register_fake("shrinknets_fast::fold_backward")
def _(
    grad_weight: torch.Tensor,
    grad_bias: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    theta: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    check("fold_backward", weight, bias, theta)
    check_like("fold_backward", "grad_weight", grad_weight, "weight", weight, "weight", weight)
    if grad_bias is not None:
        torch._check(bias is not None, lambda: "fold_backward: grad_bias is given, expected None as bias")
        assert bias is not None  # for type checkers
        check_like("fold_backward", "grad_bias", grad_bias, "bias", bias, "weight", weight)
    dbias = weight.new_empty(0) if bias is None else weight.new_empty(bias.shape[0], dtype=bias.dtype)
    return torch.empty_like(weight), dbias, weight.new_empty(theta.shape[0], dtype=theta.dtype)


def check(op: str, weight: torch.Tensor, bias: torch.Tensor | None, theta: torch.Tensor) -> None:
    """csrc/fold.h: check_fold."""
    torch._check(weight.dim() >= 1, lambda: f"{op}: weight has shape (), expected at least one dimension")
    torch._check(weight.dim() <= 8, lambda: f"{op}: weight has {weight.dim()} dimensions, expected 1 to 8")
    check_dtype(op, "weight", weight.dtype)
    for name, vector in (("theta", theta), ("bias", bias)):
        if vector is not None:
            check_dtype(op, name, vector.dtype)
            check_same_device(op, name, vector, "weight", weight)
            check_vector(op, name, vector, weight.shape[0], f"weight {tuple(weight.shape)}")


@register_decomposition(_fold)
def written_out(
    weight: torch.Tensor, bias: torch.Tensor | None, theta: torch.Tensor, dtype: torch.dtype | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """In torch's own operations: for ONNX, and for TorchScript."""
    dtype, wide = dtype or weight.dtype, widest(weight, bias, theta)
    folded = scaled(weight, theta, 0, wide).to(dtype)
    return folded, folded.new_empty(0) if bias is None else scaled(bias, theta, 0, wide).to(dtype)


class Fold(torch.autograd.Function):
    generate_vmap_rule = True  # by a loop over the samples

    @staticmethod
    def forward(
        weight: torch.Tensor, bias: torch.Tensor | None, theta: torch.Tensor, dtype: torch.dtype | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return _fold(weight, bias, theta, dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        weight, bias, theta, _ = inputs
        ctx.save_for_backward(weight, bias, theta)
        ctx.set_materialize_grads(False)

    @staticmethod
    @once
    def backward(
        ctx: Any, grad_weight: torch.Tensor | None, grad_bias: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, ...]:
        weight, bias, theta = ctx.saved_tensors
        if grad_weight is None:
            grad_weight = torch.zeros_like(weight)
        dweight, dbias, dtheta = _fold_backward(grad_weight, None if bias is None else grad_bias, weight, bias, theta)
        return dweight, None if bias is None else dbias, dtheta, None


_apply = applied(Fold, written_out)


def fold(
    weight: torch.Tensor, bias: torch.Tensor | None, theta: torch.Tensor, dtype: torch.dtype | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Folded weight and bias (None where ``bias`` is None); see the module's docstring. Differentiable once."""
    weight, folded_bias = _apply(weight, bias, theta, dtype)
    return weight, None if bias is None else folded_bias


def rows_times(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """``F.linear``, but no view of a product's matrix: what a Function returns as a view cannot be changed in place."""
    if x.dim() == 2:
        return F.linear(x, weight, bias)
    out = x.new_empty(*x.shape[:-1], weight.shape[0])
    rows, matrix = x.reshape(x.shape[:-1].numel(), x.shape[-1]), out.view(x.shape[:-1].numel(), weight.shape[0])
    if bias is None:
        torch.mm(rows, weight.t(), out=matrix)
    else:
        torch.addmm(bias, rows, weight.t(), out=matrix)
    return out


class FoldedLinear(torch.autograd.Function):
    """fold and ``F.linear`` as one node. The folded weight stays in memory while fold's gradients are made: for small ones."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, theta: torch.Tensor
    ) -> torch.Tensor:
        folded, folded_bias = _fold(weight, bias, theta)
        ctx.save_for_backward(x if any(ctx.needs_input_grad[1:]) else None, folded, weight, bias, theta)
        return rows_times(x, folded, None if bias is None else folded_bias)

    @staticmethod
    @once
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, folded, weight, bias, theta = ctx.saved_tensors
        wants_x, *wants = ctx.needs_input_grad
        rows, columns = grad, x
        if grad.dim() != 2:  # reshape and @ of matrices take 4 us more than mm
            rows = grad.reshape(grad.shape[:-1].numel(), grad.shape[-1])
            columns = None if x is None else x.reshape(len(rows), x.shape[-1])
        dx = torch.mm(rows, folded).view(*grad.shape[:-1], folded.shape[1]) if wants_x else None
        if not any(wants):
            return dx, None, None, None
        dfolded = torch.mm(rows.t(), columns)
        dfolded_bias = None if bias is None else rows.sum(0)
        dweight, dbias, dtheta = _fold_backward(dfolded, dfolded_bias, weight, bias, theta)
        return dx, dweight, None if bias is None else dbias, dtheta


_folded_linear = direct(FoldedLinear)


def folded_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    theta: torch.Tensor,
    dtype: torch.dtype | None = None,
    small: bool = False,
) -> torch.Tensor:
    """``x weight'^T + bias'``; a ``small`` one costs what its calls cost, so it is one node: 49 us, not 60, for 16 x 64 x 64."""
    if small and dtype is None and eager():
        return _folded_linear.apply(x, weight, bias, theta)
    return F.linear(x, *fold(weight, bias, theta, dtype))
