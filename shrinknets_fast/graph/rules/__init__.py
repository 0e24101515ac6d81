"""One rule per op: how it relates the axes of its inputs and outputs, and where its output is zero.

A rule takes an :class:`~shrinknets_fast.graph.op.Op` and returns its output value, from ``op.output(axes, zero)``.
"""

from . import filters, layers, pointwise, pool, reduce, shape
from .registry import find, register_rule

__all__ = ["filters", "find", "layers", "pointwise", "pool", "reduce", "register_rule", "shape"]
