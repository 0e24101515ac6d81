"""A fitted table as one ``torch.export`` program: filling in, scaling, categories, network, and back to the target's scale."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .columns import Column

MOST = 50  # columns of a category; its rarest texts share one


def preparation(columns: list[Column]) -> Any:
    """A ColumnTransformer over what ``columns.matrix`` gives, to be fitted."""
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    keep: dict[str, Any] = {"keep_empty_features": True}
    number = make_pipeline(SimpleImputer(strategy="median", **keep), StandardScaler())
    options: dict[str, Any] = {"handle_unknown": "infrequent_if_exist", "max_categories": MOST, "sparse_output": False}
    category = make_pipeline(SimpleImputer(strategy="most_frequent", **keep), OneHotEncoder(**options))
    numbers = [k for k, column in enumerate(columns) if column.values is None]
    parts = [("numbers", number, numbers)] if numbers else []
    parts += [(f"category{k}", category, [k]) for k, column in enumerate(columns) if column.values is not None]
    return ColumnTransformer(parts)


class Program(nn.Module):
    """(N, columns) in float64, as ``columns.matrix`` gives them, to (N, targets) numbers or (N, classes) probabilities."""

    def __init__(self, columns: list[Column], prepared: Any, estimator: Any) -> None:
        super().__init__()
        self.numbers = [k for k, column in enumerate(columns) if column.values is None]
        self.categories = [k for k, column in enumerate(columns) if column.values is not None]
        parts = prepared.named_transformers_
        if self.numbers:
            fill, scaler = parts["numbers"]
            self.keep("fill", fill.statistics_)
            self.keep("mean", scaler.mean_)
            self.keep("scale", scaler.scale_)
        for k in self.categories:
            fill, encoder = parts[f"category{k}"]
            self.keep(f"fill{k}", fill.statistics_)
            codes = torch.arange(len(columns[k].values or ()) + 1, dtype=torch.float64)  # the last: a text not seen
            self.keep(f"table{k}", encoder.transform(codes[:, None].numpy()))
        self.network = estimator.network_in_double()
        self.objective = getattr(estimator, "objective_", None)
        if self.objective is None:
            self.keep("target_mean", estimator.target_mean_)
            self.keep("target_scale", estimator.target_scale_)

    fill: torch.Tensor
    mean: torch.Tensor
    scale: torch.Tensor
    target_mean: torch.Tensor
    target_scale: torch.Tensor

    def keep(self, name: str, values: Any) -> None:
        self.register_buffer(name, torch.as_tensor(values, dtype=torch.float64).clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = []
        if self.numbers:
            numbers = x[:, self.numbers]
            parts.append((torch.where(numbers.isnan(), self.fill, numbers) - self.mean) / self.scale)
        for k in self.categories:
            codes = torch.where(x[:, k].isnan(), getattr(self, f"fill{k}"), x[:, k])
            parts.append(getattr(self, f"table{k}")[codes.long()])
        out = self.network(torch.cat(parts, 1))
        if self.objective is not None:
            return self.objective.probabilities(out)
        return out * self.target_scale + self.target_mean


def exported(program: Program, x: torch.Tensor) -> torch.export.ExportedProgram:
    """For any number of rows."""
    example = x[:1].expand(2, -1).clone()
    return torch.export.export(program.eval(), (example,), dynamic_shapes=({0: torch.export.Dim("rows")},))
