"""How much of a network may shrink, and what keeps the rest."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from .features import Axis
from .network import Network
from .value import Value
from .verdict import Verdict, judge


@dataclass(frozen=True)
class Coverage:
    """``parameters``: {name: (entries, share of them that could leave)}, filters left out; ``reasons``: {why: entries it keeps}.

    An entry could leave if the feature of its row or of its column could, were all filters dead. ``print`` gives a table.
    """

    parameters: dict[str, tuple[int, float]]
    reasons: dict[str, float]

    @property
    def share(self) -> float:
        """Of all entries, those that could leave."""
        total = sum(count for count, _ in self.parameters.values())
        return sum(count * share for count, share in self.parameters.values()) / total if total else 0.0

    def first_reasons(self, count: int = 3) -> list[str]:
        total = sum(entries for entries, _ in self.parameters.values()) or 1
        worst = sorted(self.reasons.items(), key=lambda item: -item[1])[:count]
        worst = worst[:1] + [(why, kept) for why, kept in worst[1:] if kept > 0.01 * total]
        return [f"{why} ({kept / total:.0%} of the parameters)" for why, kept in worst]

    def __str__(self) -> str:
        width = max((len(name) for name in self.parameters), default=0)
        lines = [f"{name:<{width}}  {count:>12,}  {share:>5.0%}" for name, (count, share) in self.parameters.items()]
        lines.append(f"{self.share:.0%} of the parameters could shrink")
        return "\n".join([*lines, *(f"kept: {reason}" for reason in self.first_reasons(len(self.reasons)))])


def coverage_of(
    model: nn.Module, network: Network, dead: Mapping[int, torch.Tensor], supposed: Mapping[Value, int] | None = None
) -> Coverage:
    """dead: {id(theta): mask} with every filter dead; supposed: values that filters to come make zero, see :func:`judge`."""
    verdict = judge(network, dead, supposed, idle_too=False)
    thetas = set(dead)
    read = {value for op in network.ops for value in op.inputs}
    parameters = {}
    reasons: defaultdict[str, float] = defaultdict(float)
    for name, tensor in model.named_parameters():
        if id(tensor) in thetas or not tensor.numel():
            continue
        bound = network.bound.get(id(tensor))
        axes = [axis for axis in bound.value.axes if axis is not None] if bound else []
        stays = [~verdict.removable[axis.ids] for axis in axes]
        share = 1 - math.prod(float(mask.double().mean()) for mask in stays)
        parameters[name] = (tensor.numel(), share)
        kept = tensor.numel() * (1 - share)
        for why, part in causes(verdict, axes, stays, used=bound is not None and bound.value in read).items():
            reasons[why] += kept * part
    return Coverage(parameters, {why: kept for why, kept in reasons.items() if kept > 0})


def causes(verdict: Verdict, axes: Sequence[Axis], stays: Sequence[torch.Tensor], used: bool) -> dict[str, float]:
    """{why: share} of what keeps a tensor's entries; each of its axes counts alike."""
    if not axes:
        return {"no rule relates it to features" if used else "the forward does not use it": 1.0}
    found: defaultdict[str, float] = defaultdict(float)
    for axis, mask in zip(axes, stays, strict=True):
        blamed = verdict.blame[axis.ids[mask]]
        for index, count in zip(*(t.tolist() for t in blamed.unique(return_counts=True)), strict=True):
            found[in_general(verdict.reasons[index]) if index >= 0 else "nothing reads it"] += count / len(blamed)
    total = sum(found.values())
    return {why: part / total for why, part in found.items()}


def in_general(reason: str) -> str:
    """Without the module's name, so that layers of one kind count together; a feature that no filter could make zero has none."""
    if reason.startswith("is not zero where"):
        return "no filter makes it zero"
    return re.sub(r"[\w.]+ \((\w+)\)", r"\1", reason)
