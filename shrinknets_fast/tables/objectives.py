"""What a network for a table learns: numbers, one of two classes, or one of several."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional as F

Kind = Literal["numbers", "two classes", "classes"]


@dataclass(frozen=True)
class Objective:
    """outputs: of the network. "two classes" has one, a logit, as scikit-learn's MLPClassifier has."""

    kind: Kind
    outputs: int

    @property
    def words(self) -> str:
        return "mean squared error, standardised" if self.kind == "numbers" else "cross entropy"

    def losses(self, out: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Of each row, (N,). out: (N, outputs); y: (N, outputs) numbers, or (N,) classes."""
        if self.kind == "numbers":
            return F.mse_loss(out, y, reduction="none").mean(1)
        if self.kind == "two classes":
            return F.binary_cross_entropy_with_logits(out[:, 0], y.to(out.dtype), reduction="none")
        return F.cross_entropy(out, y, reduction="none")

    def probabilities(self, out: torch.Tensor) -> torch.Tensor:
        """(N, classes)"""
        if self.kind == "two classes":
            second = out[:, 0].sigmoid()
            return torch.stack([1 - second, second], 1)
        return out.softmax(1)


def numbers(outputs: int) -> Objective:
    return Objective("numbers", outputs)


def classes(count: int) -> Objective:
    return Objective("two classes", 1) if count == 2 else Objective("classes", count)
