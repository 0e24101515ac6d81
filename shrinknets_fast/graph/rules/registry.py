"""Which rule an op has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from ...insides import OpOverload, OpOverloadPacket

if TYPE_CHECKING:
    from ..op import Op
    from ..value import Value

Rule = Callable[[Any], "Value | Sequence[Value] | None"]  # of an Op, or of a ModuleOp
R = TypeVar("R", bound=Rule)
Registered = OpOverload | OpOverloadPacket | torch.Tag | type

RULES: dict[Any, Rule] = {}  # by overload, or by tag: of all ops that have the tag and no rule of their own
MODULES: dict[str, Rule] = {}  # qualified class name -> the rule of a call of such a module as a whole
WHOLE_MODULES: dict[str, Rule] = {}  # class name of a module -> the rule of everything that its own forward calls


def register_rule(*ops: Registered) -> Callable[[R], R]:
    """Decorator: ``rule(op)`` is the rule of these ops, or of calls of these module types as a whole.

    An op is an ``OpOverload``, or an ``OpOverloadPacket`` for all its overloads; its in-place variant shares its rule. The rule
    of a module type (a class) sees the tensors it is given as ``op.inputs`` and its own as ``op.parameter("weight")``.
    """

    def register(rule: R) -> R:
        for kind in [op for op in ops if isinstance(op, type)]:
            MODULES[f"{kind.__module__}.{kind.__qualname__}"] = rule
        ops_only = [op for op in ops if not isinstance(op, type)]
        for op in [*ops_only, *filter(None, map(in_place, ops_only))]:
            overloads = [getattr(op, name) for name in op.overloads()] if isinstance(op, OpOverloadPacket) else [op]
            for overload in overloads:
                RULES[overload] = rule
        return rule

    return register


def named(*names: str, namespace: str = "aten") -> list[OpOverloadPacket]:
    """The ops of these names that this torch has."""
    packets = getattr(torch.ops, namespace)
    return [getattr(packets, name) for name in names if hasattr(packets, name)]


def find(op: Op) -> Rule | None:
    """The rule of an op of the graph, or None."""
    rule = rule_of(op.target)
    return rule and WHOLE_MODULES.get(op.module_type, rule)


def rule_of(target: Any) -> Rule | None:
    """Its own rule, its functional variant's, or that of its tag."""
    if not isinstance(target, OpOverload):
        return RULES.get(target)
    for candidate in (target, functional(target)):
        if candidate in RULES:
            return RULES[candidate]
        if tagged := [RULES[tag] for tag in (candidate.tags if candidate else ()) if tag in RULES]:
            return tagged[0]
    return None


def in_place(packet: Any) -> OpOverloadPacket | None:
    """add to add_: the overloads' names may differ, so all of them are meant. None where there is no such packet."""
    if not isinstance(packet, OpOverloadPacket):
        return None
    namespace, _, name = packet._qualified_op_name.partition("::")
    return getattr(getattr(torch.ops, namespace), f"{name}_", None)


def functional(target: OpOverload) -> OpOverload | None:
    """add_.Tensor to add.Tensor; None for an op that is no in-place variant of another."""
    namespace, _, name = target.overloadpacket._qualified_op_name.partition("::")
    if not name.endswith("_") or name.endswith("__"):
        return None
    packet = getattr(getattr(torch.ops, namespace), name[:-1], None)
    return getattr(packet, target._overloadname, None)
