"""What a rule says, checked: its faults are one line that names it, its file and the op."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..errors import ShrinkError
from .op import Op
from .value import RuleError, Step, Value, Zeros


def by_rule(rule: Callable[[Any], Any], op: Op) -> Any:
    """What the rule says; its faults name it and the op."""
    op.rule = rule
    try:
        result = rule(op)
        values = result if isinstance(result, (list, tuple)) else [] if result is None else [result]
        for value in values:
            if not isinstance(value, Value) or any(value is given for given in op.inputs):
                found = "an input" if isinstance(value, Value) else f"a {type(value).__name__}"
                raise RuleError(f"it returns {found}, expected what op.output gives, or None")
        return result
    except Exception as error:
        if isinstance(error, ShrinkError) and not isinstance(error, RuleError):
            raise
        raise fault_of(op, error) from error


def zeros_by_rule(step: Step, zeros: Zeros) -> Sequence[Any]:
    """What the rule's zero function says of each output, given what is known of the inputs."""
    try:
        found = step.zero(zeros)
        for value, known in zip(step.outputs, found, strict=True):
            check_masks(value, known)
        return found
    except Exception as error:
        raise fault_of(step.op, error) from error


def check_masks(value: Value, known: Sequence[Any]) -> None:
    if len(known) != value.ndim:
        raise RuleError(f"its zero function gives {len(known)} masks for a result of {value.ndim} dimensions")
    for dim, (mask, axis) in enumerate(zip(known, value.axes, strict=True)):
        if mask is None or axis is None:
            continue
        if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool or mask.shape != (len(axis),):
            found = f"{tuple(mask.shape)} {mask.dtype}" if isinstance(mask, torch.Tensor) else type(mask).__name__
            raise RuleError(
                f"its zero function gives {found} for dimension {dim}, expected {len(axis)} bools, its size of today"
            )


def fault_of(op: Op, error: Exception) -> RuleError:
    """The error of a rule, or of its zero function, as one line that names the rule, its file and the op."""
    code = getattr(op.rule, "__code__", None)
    where = f" ({code.co_filename}:{code.co_firstlineno})" if code else ""
    what = str(error) if isinstance(error, RuleError) else f"{type(error).__name__}: {error}"
    return RuleError(f"the rule {getattr(op.rule, '__name__', op.rule)}{where} for {op.label}: {what}")
