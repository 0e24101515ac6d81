"""One training of one network for a table."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from .. import GarbageCollector, LambdaSchedule, features, fold_filters, load_state_dict, param_groups, penalty
from ..errors import ShrinkError
from ..folded import unfolded
from ..nn import FilteredLinear
from .objectives import Objective

SAMPLES = 500  # of the sizes over a run, for a picture
SHRINKING = 0.5  # of the steps have the penalty; what is left by then trains without
LOOKS = 4  # per epoch, for dead features: a look waits, a dead feature costs little
Data = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Recipe:
    """hidden: widths at the start. patience: epochs without a better validation loss until it stops, None: it does not."""

    hidden: tuple[int, ...]
    lr: float
    filter_lr: float
    weight_decay: float
    epochs: int
    batch_size: int
    patience: int | None = None


@dataclass
class Account:
    """What happened, for a picture: it has what ``training.picture`` asks of a history."""

    losses: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    sizes: list[tuple[int, ...]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def curves(self) -> tuple[list[int], dict[str, list[int]]]:
        columns = zip(*self.sizes, strict=True)
        return self.steps, {f"hidden{k}": list(column) for k, column in enumerate(columns, 1)}

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["kind"] == kind]


@dataclass
class Trained:
    """network: plain torch.nn, in evaluation. validation: the loss of each row that was held out, (M,)."""

    network: nn.Module
    sizes: tuple[int, ...]
    epochs: int
    account: Account
    validation: torch.Tensor | None


def network(inputs: int, hidden: tuple[int, ...], outputs: int, generator: torch.Generator) -> nn.Sequential:
    """Linear layers with ReLU and a filter that starts at 1; weights as in scikit-learn's MLPs (Glorot, biases too)."""
    layers: list[nn.Module] = []
    with torch.device("meta"):  # where drawing takes nothing from torch's own generator
        for width in hidden:
            layers.append(FilteredLinear(inputs, width, activation="relu", init=1.0))
            inputs = width
        layers.append(nn.Linear(inputs, outputs))
        model = nn.Sequential(*layers)
    model.to_empty(device="cpu")
    with unfolded(), torch.no_grad():
        for layer in model:
            assert isinstance(layer, nn.Linear)
            gain = 6 if isinstance(layer, FilteredLinear) else 2
            bound = math.sqrt(gain / (layer.in_features + layer.out_features))
            layer.weight.uniform_(-bound, bound, generator=generator)
            layer.bias.uniform_(-bound, bound, generator=generator)
            if isinstance(layer, FilteredLinear):
                layer.reset_theta()
    return model


class Run:
    """x: (N, columns), y: as the objective says. after_step(run, loss): for a progress bar."""

    def __init__(
        self, data: Data, objective: Objective, recipe: Recipe, lam: float, seed: int, validation: Data | None = None
    ) -> None:
        self.x, self.y = data
        self.objective, self.recipe, self.validation = objective, recipe, validation
        self.generator = torch.Generator().manual_seed(seed)
        self.model = network(self.x.shape[1], recipe.hidden, objective.outputs, self.generator)
        rates = {"lr": recipe.lr, "filter_lr": recipe.filter_lr, "weight_decay": recipe.weight_decay}
        self.optimizer = torch.optim.AdamW(param_groups(self.model, **rates), fused=True)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.steps_per_epoch = math.ceil(len(self.x) / recipe.batch_size)
        self.total = self.steps_per_epoch * recipe.epochs
        every = max(1, self.steps_per_epoch // LOOKS)
        self.collector = GarbageCollector(self.model, self.x[:1], optimizers=self.optimizer, every=every)
        self.schedule = LambdaSchedule(lam, steps=max(1, round(SHRINKING * self.total)))
        self.step_count = 0
        self.account = Account()
        self.note_sizes()

    def alive(self) -> tuple[int, ...]:
        return tuple(alive for alive, _ in features(self.model).values())

    def note_sizes(self) -> None:
        self.account.steps.append(self.step_count)
        self.account.sizes.append(self.alive())

    def train(self, after_step: Callable[[Run, torch.Tensor], None] | None = None) -> Trained:
        best, best_epoch, kept = math.inf, 0, None
        stride, waiting = max(1, self.total // SAMPLES), []
        for epoch in range(1, self.recipe.epochs + 1):
            for batch in torch.randperm(len(self.x), generator=self.generator).split(self.recipe.batch_size):
                waiting.append(loss := self.step(batch))
                if self.step_count % stride == 0:
                    self.note_sizes()
                if after_step is not None:
                    after_step(self, loss)
            self.account.losses += torch.stack(waiting).tolist()
            waiting.clear()
            self.refuse_non_finite()
            if self.validation is not None and (self.recipe.patience is not None or after_step is not None):
                value = float(self.held_out().mean())
                self.account.rows.append({"kind": "epoch", "step": self.step_count, "test_loss": value})
                if value < best and self.recipe.patience is not None:
                    best, best_epoch = value, epoch
                    kept = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
                if self.recipe.patience is not None and epoch - best_epoch >= self.recipe.patience:
                    break
        if kept is not None:
            self.go_back(kept)
        self.collector.collect()
        self.note_sizes()
        last = self.held_out() if self.validation is not None else None
        plain = fold_filters(self.model).eval().requires_grad_(False)
        self.refuse_non_finite(plain)
        return Trained(plain, self.alive(), best_epoch if kept is not None else epoch, self.account, last)

    def go_back(self, state: dict[str, torch.Tensor]) -> None:
        """To an epoch in which the network was larger."""
        self.model = network(self.x.shape[1], self.recipe.hidden, self.objective.outputs, self.generator)
        load_state_dict(self.model, state)
        self.collector = GarbageCollector(self.model, self.x[:1])

    def step(self, batch: torch.Tensor) -> torch.Tensor:
        falling = (1 + math.cos(math.pi * self.step_count / self.total)) / 2
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * falling
        loss = self.objective.losses(self.model(self.x[batch]), self.y[batch]).mean()
        self.optimizer.zero_grad()
        weight = self.schedule.lam
        (loss + weight * penalty(self.model) if weight else loss).backward()
        self.schedule.step()
        self.optimizer.step()
        self.step_count += 1
        collection = self.collector.step()
        if collection is not None and collection.removed:
            sizes = {f"hidden{k}": [alive] for k, alive in enumerate(self.alive(), 1)}
            self.account.rows.append({"kind": "collection", "step": self.step_count, "features": sizes})
        return loss.detach()

    @torch.no_grad()
    def held_out(self) -> torch.Tensor:
        assert self.validation is not None
        x, y = self.validation
        return self.objective.losses(self.model(x), y)

    def refuse_non_finite(self, network: nn.Module | None = None) -> None:
        last = self.account.losses[-1]
        if network is not None and not all(p.isfinite().all() for p in network.parameters()):
            last = math.nan  # by the last step, after which no loss was computed
        if not math.isfinite(last):
            raise ShrinkError(
                f"the loss became {last} at step {self.step_count} with lr {self.recipe.lr:g}; "
                "are the columns of like scale (StandardScaler)?"
            )
