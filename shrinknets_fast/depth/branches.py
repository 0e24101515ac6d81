"""Residual branches: the side of a sum that can be closed, and the module that makes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..graph.network import Network
from ..graph.op import Op
from ..graph.value import Value

aten = torch.ops.aten
SUMS = (aten.add.Tensor, aten.add_.Tensor)


@dataclass(frozen=True)
class Branch:
    """``module``: the dotted name of the module whose output is the branch, as the sum's own module sees it."""

    module: str
    output: Value


def find_branches(network: Network) -> list[Branch]:
    """One :class:`Branch` per residual sum, in the order of the forward.

    Seen in evaluation mode, where stochastic depth and dropout do not stand between a branch and its sum.
    """
    maker = {value: op for op in network.ops for value in op.results}
    before: dict[Value, set[Value]] = {}  # value -> the values it was computed from, itself included
    for op in network.ops:
        sources = set().union(*(before.get(v, {v}) for v in op.inputs if v.tensor is None)) if op.inputs else set()
        for value in op.results:
            before[value] = sources | {value}
    found: dict[str, Branch] = {}
    for op in network.ops:
        if (
            op.mode != "eval"
            or op.target not in SUMS
            or len(op.inputs) != 2
            or op.inputs[0].shape != op.inputs[1].shape
        ):
            continue
        side = branch_side(op.inputs[0], op.inputs[1], before)
        module = None if side is None else module_of(side, op, maker)
        if side is not None and module is not None:
            found.setdefault(module, Branch(module, side))
    return list(found.values())


def branch_side(first: Value, second: Value, before: Mapping[Value, set[Value]]) -> Value | None:
    """The side that is computed from the other, or the longer way from where both come from; None if neither is."""
    left, right = before.get(first, {first}), before.get(second, {second})
    common = left & right
    if not common or not first.ndim:
        return None
    longer = (len(left - common) > len(right - common)) - (len(left - common) < len(right - common))
    if first in right:
        longer = -1
    elif second in left:
        longer = 1
    return {1: first, -1: second, 0: None}[longer]


def module_of(value: Value, total: Op, maker: Mapping[Value, Op]) -> str | None:
    """The outermost module that makes ``value`` inside the module of the sum; scaling and dropout in between are passed."""
    inside = set(total.modules)
    while value in maker:
        op = maker[value]
        own = [name for name in op.modules if name not in inside]
        if own:
            return own[0]
        passed = [v for v in op.inputs if v.tensor is None and v.shape == value.shape]
        if len(passed) != 1 or torch.Tag.pointwise not in getattr(op.target, "tags", ()) and "dropout" not in op.name:
            return None
        value = passed[0]
    return None
