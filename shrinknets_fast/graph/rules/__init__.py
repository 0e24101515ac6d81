"""One rule per op: how it relates the feature axes of its inputs and outputs, and where its output is zero.

A rule takes an :class:`~shrinknets_fast.graph.op.Op` and returns its output value, from ``op.output(axes, zero)``.
"""

from . import (  # noqa: F401  each file registers its rules
    attention,
    conv,
    filters,
    layers,
    like,
    matmul,
    mixing,
    norms,
    pieces,
    pointwise,
    pool,
    recurrent,
    reduce,
    repeats,
    shape,
    spatial,
)
from .registry import find, register_rule

__all__ = ["find", "register_rule"]
