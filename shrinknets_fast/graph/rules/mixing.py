"""Ops that mix or count the positions of one axis: its features stay. The other axes pass."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..op import Op, Result
from ..value import Value
from .registry import named, register_rule
from .zeros import carried

aten = torch.ops.aten


def along(op: Op, dim: int, reason: str, keeps_zero: bool) -> Result:
    x = op.inputs[0]
    axes = op.axes(x)
    if x.ndim:
        op.pin(axes[dim % x.ndim], reason)
    if op.several:
        return op.outputs([axes] * len(op.shapes))
    return op.output(axes, carried([x], axes) if keeps_zero else None)


@register_rule(
    *named(
        "softmax", "log_softmax", "_softmax", "_log_softmax", "special_softmax", "special_log_softmax", "logcumsumexp"
    )
)
def softmax(op: Op) -> Result:
    return along(op, op["dim"], f"is mixed with others by {op.label}, which counts its features", False)


@register_rule(*named("cumsum", "cumprod"))
def cumulative(op: Op) -> Result:
    return along(op, op["dim"], f"is added up in order by {op.label}", True)


@register_rule(*named("cummax", "cummin", "sort", "argsort", "msort"))
def ordered(op: Op) -> Result:
    return along(op, op.get("dim", 0), f"is compared with others by {op.label}", False)


@register_rule(
    *named(
        "topk", "kthvalue", "mode", "median", "nanmedian", "quantile", "histc", "bincount", "cdist", "cov", "unique_dim"
    )
)
@register_rule(
    *named(
        "cosine_similarity",
        "pairwise_distance",
        "embedding_bag",
        "nll_loss",
        "cross_entropy_loss",
        "fft_fft",
        "fft_rfft",
    )
)
@register_rule(
    *named(
        "renorm",
        "index_put",
        "scatter",
        "scatter_add",
        "gather",
        "take_along_dim",
        "diagonal",
        "diag_embed",
        "trace",
        "kron",
    )
)
def compared(op: Op) -> Result:
    op.pin_all(f"is read by {op.label}, which needs all of it")
    return op.fixed()


def recurrent(layer: str) -> Callable[[Op], Result]:
    def rule(op: Op) -> Result:
        op.pin_all(f"is read by {op.label}: nn.{layer} mixes its features")
        return op.fixed()

    return rule


register_rule(*named("lstm", "lstm_cell", "_thnn_fused_lstm_cell", "quantized_lstm"))(recurrent("LSTM"))
register_rule(*named("gru", "gru_cell"))(recurrent("GRU"))
register_rule(*named("rnn_tanh", "rnn_relu", "rnn_tanh_cell", "rnn_relu_cell"))(recurrent("RNN"))


@register_rule(*named("tril", "triu"))
def triangle(op: Op) -> Value:
    """Zero where the last two axes' positions say so."""
    x = op.inputs[0]
    axes = op.axes(x)
    for axis in axes[-2:]:
        op.pin(axis, f"is cut by position in {op.label}")
    return op.output(axes, carried([x], axes))
