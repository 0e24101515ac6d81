"""Which rule an op has."""

import torch

RULES = {}


def register_rule(*ops):
    """Decorator: ``rule(op)`` is the rule of these ops (``OpOverload`` or ``OpOverloadPacket``: all its overloads)."""

    def register(rule):
        for op in ops:
            overloads = [getattr(op, name) for name in op.overloads()] if isinstance(op, torch._ops.OpOverloadPacket) else [op]
            for overload in overloads:
                RULES[overload] = rule
        return rule

    return register


def find(target):
    """The rule of an op of the graph, or None. Every op tagged pointwise shares one."""
    if target in RULES:
        return RULES[target]
    if isinstance(target, torch._ops.OpOverload) and torch.Tag.pointwise in target.tags:
        from .pointwise import pointwise

        return pointwise
    return None
