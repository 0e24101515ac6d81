"""A short search for lambda: the one with the least loss on rows held out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from .objectives import Objective
from .training import Data, Recipe, Run, Trained

LAMS = (1e-2, 3e-3, 1e-3)
Folds = list[tuple[torch.Tensor, torch.Tensor]]  # (rows to train on, rows held out) each
Watch = Callable[[str], Callable[[Run, torch.Tensor], None] | None]


@dataclass(frozen=True)
class Tried:
    """One lambda of a search: the mean loss of the rows held out, and the mean number of live features."""

    lam: float
    loss: float
    features: float


@dataclass
class Found:
    lam: float
    tried: list[Tried]
    best: Trained | None  # of the lambda found, where there was one fold


def rows_of(data: Data, rows: torch.Tensor) -> Data:
    x, y = data
    return x[rows], y[rows]


def search(
    data: Data, objective: Objective, recipe: Recipe, folds: Folds, lams: Iterable[float], seed: int, watch: Watch
) -> Found:
    """Each lambda is trained on each fold; the least mean loss over the rows held out wins, the first of equal ones."""
    tried, runs = [], []
    for lam in lams:
        trained = []
        for k, (inside, outside) in enumerate(folds):
            run = Run(rows_of(data, inside), objective, recipe, lam, seed + k, rows_of(data, outside))
            trained.append(run.train(watch(f"lambda {lam:g}")))
        losses = torch.cat([t.validation for t in trained if t.validation is not None]).double()
        tried.append(Tried(lam, float(losses.mean()), sum(sum(t.sizes) for t in trained) / len(trained)))
        runs.append(trained)
    best = min(range(len(tried)), key=lambda k: tried[k].loss)
    return Found(tried[best].lam, tried, runs[best][0] if len(folds) == 1 else None)
