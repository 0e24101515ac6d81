"""LSTM and GRU: rows of several gates for each hidden feature, which the same module's columns read again."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..features import Axis
from ..op import Op, Result
from ..value import Read, Step, Value, Zeros
from .layers import contract
from .registry import register_rule

aten = torch.ops.aten
ZEROS = (aten.zeros.default, aten.new_zeros.default, aten.zeros_like.default)


def recurrent(gates: int) -> Callable[[Op], Result]:
    def rule(op: Op) -> Result:
        x, params = op["input"], op["params"]
        each, directions = 4 if op["has_biases"] else 2, 2 if op["bidirectional"] else 1
        if len(params) != each * directions * op["num_layers"]:
            op.pin_all(f"is read by {op.label}, which projects its states")
            return op.fixed()
        hidden = op.axis(params[1], 1)
        if hidden is None:
            op.pin_all(f"is read by {op.label}, whose weights are no parameters")
            return op.fixed()
        rows, both = op.repeated(hidden, gates), op.repeated(hidden, directions)
        op.makes(hidden)
        columns: list[tuple[Value, int]] = []  # that read the hidden state, and how often it stands there
        for start in range(0, len(params), each):
            inputs, own = params[start], params[start + 1]
            for value in params[start : start + each]:
                op.unify(rows, op.axis(value, 0))
            op.unify(hidden, op.axis(own, 1))
            columns.append((own, 1))
            if start < each * directions:
                contract(op, x, -1, inputs, 1)
            else:
                op.unify(both, op.axis(inputs, 1))
                columns.append((inputs, directions))
        for axis in op.axes(x)[:-1]:
            op.pin(axis, f"is no feature in {op.label}")
        given = op["hx"] if isinstance(op["hx"], list) else [op["hx"]]
        for value, node in zip(given, op.nodes_of("hx"), strict=True):
            if node.target not in ZEROS:
                op.unify(hidden, op.axis(value, -1))
            elif node.meta.get("nn_module_stack") != op.node.meta.get("nn_module_stack"):
                op.doubt(hidden)  # as wide as the layer, or as a number in the user's code says
        read_again(op, hidden, columns)
        axes = [[*[None] * (x.ndim - 1), both], *[[None, None, hidden] for _ in given]]
        return op.outputs(axes, lambda zeros: [[None] * len(known) for known in axes])

    return rule


def read_again(op: Op, hidden: Axis, columns: list[tuple[Value, int]]) -> None:
    """The hidden features are read by the layer's own columns: nothing is lost where all of these are zero."""
    product = Value(hidden.ids.shape, None, None, [hidden])

    def zero(zeros: Zeros) -> list[list[torch.Tensor | None]]:
        masks = [(zeros(value, 1), times) for value, times in columns]
        known = [mask.view(times, -1).all(0) for mask, times in masks if mask is not None]
        return [[torch.stack(known).all(0) if len(known) == len(masks) else None]]

    op.network.steps.append(Step(op, (product,), zero))
    op.network.reads.append(Read(product, 0, op))


register_rule(aten.lstm.input)(recurrent(4))
register_rule(aten.gru.input)(recurrent(3))
