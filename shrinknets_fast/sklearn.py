"""``sn.sklearn``: scikit-learn estimators that start oversized and find their own size. Imported when it is asked for."""

from __future__ import annotations

import contextlib
import copy
import math
from typing import Any, Literal

import torch
from torch import nn

from .errors import ShrinkError
from .tables import objectives
from .tables.objectives import Objective
from .tables.search import LAMS, Folds, rows_of, search
from .tables.threads import few_threads
from .tables.training import Recipe, Run, Trained
from .tables.watching import Bar, no_bar

try:
    import numpy as np
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.model_selection import KFold, ShuffleSplit, StratifiedKFold, StratifiedShuffleSplit
    from sklearn.utils import check_random_state
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data
except ImportError as error:
    raise ImportError("shrinknets_fast.sklearn needs scikit-learn: pip install 'shrinknets_fast[sklearn]'") from error

__all__ = ["ShrinkClassifier", "ShrinkRegressor"]

Array = Any
FEW = 20  # rows: fewer say nothing about lambda, and LAMS[1] is taken
MANY = 1000  # rows: from here on one split is enough for the search, else there are FOLDS
FOLDS = 3


class Shrink(BaseEstimator):
    """What both estimators share."""

    def __init__(
        self,
        hidden_layer_sizes: int | tuple[int, ...] = (256,),
        *,
        lam: float | Literal["auto"] = "auto",
        lr: float = 3e-3,
        filter_lr: float = 1e-2,
        weight_decay: float = 0.1,
        epochs: int = 60,
        batch_size: int | Literal["auto"] = "auto",
        early_stopping: bool = False,
        validation_fraction: float = 0.2,
        patience: int = 10,
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.lam = lam
        self.lr = lr
        self.filter_lr = filter_lr
        self.weight_decay = weight_decay
        self.epochs = epochs
        self.batch_size = batch_size
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.random_state = random_state
        self.verbose = verbose

    def _train(self, x: Array, y: Array, objective: Objective, labels: Array | None) -> None:
        """x: (N, columns) and y as the objective has it, both numpy; labels: (N,) classes to stratify by."""
        recipe, lams = self._recipe(len(x)), self._lams()
        random = check_random_state(self.random_state)
        seed = int(random.randint(2**31 - 1))
        data = torch.from_numpy(x), torch.from_numpy(y)
        folds = self._folds(len(x), labels, seed, len(lams) > 1)
        weights = x.shape[1] * recipe.hidden[0] + sum(
            a * b for a, b in zip(recipe.hidden, (*recipe.hidden[1:], objective.outputs), strict=True)
        )
        bar = Bar if self.verbose else no_bar
        runs = len(lams) * len(folds) + (not self.early_stopping) if len(lams) > 1 else 1
        with few_threads(recipe.batch_size, weights), bar(runs) as watch:
            if len(lams) > 1 and folds:
                found = search(data, objective, recipe, folds, lams, seed, watch)
                lam, trained = found.lam, found.best if self.early_stopping else None
                self.search_ = [vars(tried) for tried in found.tried]
            else:
                lam, trained = (lams[0] if len(lams) == 1 else LAMS[1]), None
                self.search_ = []
            if trained is None:
                trained = self._last(data, objective, recipe, lam, folds, seed, watch)
        self._keep(trained, lam)

    def _last(
        self, data: Any, objective: Objective, recipe: Recipe, lam: float, folds: Folds, seed: int, watch: Any
    ) -> Trained:
        """The run whose network is kept: on all rows, but where it is to stop early."""
        validation = None
        if self.early_stopping:
            inside, outside = folds[0]
            data, validation = rows_of(data, inside), rows_of(data, outside)
        return Run(data, objective, recipe, lam, seed, validation).train(watch(f"lambda {lam:g}, last run"))

    def _keep(self, trained: Trained, lam: float) -> None:
        self.network_ = trained.network
        self.lam_ = lam
        self.sizes_ = trained.sizes
        self.n_parameters_ = sum(p.numel() for p in trained.network.parameters())
        self.n_iter_ = trained.epochs
        self.loss_curve_ = trained.account.losses
        self.account_ = trained.account

    def network_in_double(self) -> nn.Module:
        """A copy of ``network_`` in float64: there a row's prediction does not depend on the rows beside it."""
        check_is_fitted(self)
        return copy.deepcopy(self.network_).double()

    def _outputs(self, x: Array) -> torch.Tensor:
        check_is_fitted(self)
        x = validate_data(self, x, reset=False, dtype=np.float64)
        with torch.no_grad():
            return self.network_in_double()(torch.from_numpy(x))

    def _folds(self, rows: int, labels: Array | None, seed: int, searches: bool) -> Folds:
        """What the search trains on and looks at; for early stopping one split."""
        if self.early_stopping or (searches and rows >= MANY):
            share = {"test_size": self.validation_fraction, "random_state": seed, "n_splits": 1}
            held = math.ceil(rows * self.validation_fraction)
            if held >= rows:
                raise ShrinkError(
                    f"validation_fraction is {self.validation_fraction:g}, which leaves none of {rows} rows"
                )
            fits = labels is not None and np.bincount(labels).min() > 1 and min(held, rows - held) > labels.max()
            split: Any = StratifiedShuffleSplit(**share) if fits else ShuffleSplit(**share)
        elif searches and rows >= FEW:
            options = {"n_splits": FOLDS, "shuffle": True, "random_state": seed}
            fits = labels is not None and np.bincount(labels).min() >= FOLDS
            split = StratifiedKFold(**options) if fits else KFold(**options)
        else:
            return []
        parts = split.split(np.zeros(rows), labels)
        return [(torch.from_numpy(inside), torch.from_numpy(outside)) for inside, outside in parts]

    def _recipe(self, rows: int) -> Recipe:
        size = self.hidden_layer_sizes
        hidden = tuple(size) if isinstance(size, (tuple, list, np.ndarray)) else (size,)
        if not hidden or not all(is_whole(width) and width >= 1 for width in hidden):
            raise ShrinkError(f"hidden_layer_sizes is {size!r}, expected integers of at least 1")
        batch_size: Any = self.batch_size
        if isinstance(batch_size, str) and batch_size == "auto":
            batch_size = min(256, max(16, rows // 20))
        for name, value in (("epochs", self.epochs), ("batch_size", batch_size), ("patience", self.patience)):
            if not is_whole(value) or value < 1:
                raise ShrinkError(f"{name} is {value!r}, expected an integer of at least 1")
        for name in ("lr", "filter_lr", "weight_decay"):
            value = getattr(self, name)
            if not is_number(value) or value < 0 or (value == 0 and name == "lr"):
                raise ShrinkError(f"{name} is {value!r}, expected a finite number of at least 0, and lr above it")
        if not is_number(self.validation_fraction) or not 0 < self.validation_fraction < 1:
            raise ShrinkError(f"validation_fraction is {self.validation_fraction!r}, expected a number between 0 and 1")
        patience = self.patience if self.early_stopping else None
        rates = (float(self.lr), float(self.filter_lr), float(self.weight_decay))
        return Recipe(tuple(int(width) for width in hidden), *rates, self.epochs, int(batch_size), patience)

    def _lams(self) -> tuple[float, ...]:
        if isinstance(self.lam, str) and self.lam == "auto":
            return LAMS
        if not is_number(self.lam) or self.lam < 0:
            raise ShrinkError(f"lam is {self.lam!r}, expected 'auto' or a finite number of at least 0")
        return (float(self.lam),)


class ShrinkClassifier(ClassifierMixin, Shrink):
    """A multi-layer perceptron that starts at ``hidden_layer_sizes`` and ends at ``sizes_``, for two or more classes.

    Columns of like scale are expected, as for scikit-learn's MLPs: ``make_pipeline(StandardScaler(), ShrinkClassifier())``.

    lam: weight of the penalty ``sum(max(0, theta))``; "auto" tries 1e-2, 3e-3 and 1e-3 in a cross-validation (three folds; from
    1,000 rows on one split) and takes the one with the least loss, then trains on all rows.
    lr, filter_lr, weight_decay: of AdamW, for weights, for thetas, on the weights; rates fall to 0 as a cosine, and
    the second half of the steps is without the penalty. batch_size:
    "auto" is a 20th of the rows, from 16 to 256. early_stopping: hold ``validation_fraction`` of the rows out, end after
    ``patience`` epochs without a better loss there, and keep the best epoch's network. random_state: an int gives the same
    network each time. verbose: a progress bar (tqdm).

    Fitted: classes_, n_features_in_, sizes_ (widths found), n_parameters_, lam_, search_ (one dict per lambda tried), network_
    (plain ``torch.nn``, float32), loss_curve_ (per step), n_iter_ (epochs). Raises ShrinkError, a ValueError, for bad parameters.
    """

    def fit(self, X: Array, y: Array) -> ShrinkClassifier:
        X, y = validate_data(self, X, y, dtype=np.float64)
        y = column_or_1d(y, warn=True)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ShrinkError(
                f"y has one class, {self.classes_.tolist()[0]!r}, in {len(y)} rows; expected at least two"
            )
        self.objective_ = objectives.classes(len(self.classes_))
        self._train(as_float32(X, "X"), labels.astype(np.int64), self.objective_, labels)
        return self

    def predict_proba(self, X: Array) -> Array:
        """(N, classes), in the order of ``classes_``."""
        out = self._outputs(X)
        return self.objective_.probabilities(out).numpy()

    def predict(self, X: Array) -> Array:
        """(N,): the likeliest of ``classes_``."""
        likeliest = self.predict_proba(X).argmax(1)
        return self.classes_[likeliest]


class ShrinkRegressor(RegressorMixin, Shrink):
    """A multi-layer perceptron that starts at ``hidden_layer_sizes`` and ends at ``sizes_``, for one or several targets.

    Targets are standardised inside, so their scale does not matter; that of the columns does: use a StandardScaler. Parameters
    and what is fitted are those of :class:`ShrinkClassifier`, but for ``classes_``; the loss is the mean squared error.
    """

    def fit(self, X: Array, y: Array) -> ShrinkRegressor:
        X, y = validate_data(self, X, y, dtype=np.float64, multi_output=True, y_numeric=True)
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        self._flat = y.ndim == 1
        y = y.reshape(len(y), -1).astype(np.float64)
        self.target_mean_, spread = y.mean(0), y.std(0)
        self.target_scale_ = np.where(spread > 0, spread, 1.0)
        scaled = (y - self.target_mean_) / self.target_scale_
        self._train(as_float32(X, "X"), as_float32(scaled, "y"), objectives.numbers(y.shape[1]), None)
        return self

    def predict(self, X: Array) -> Array:
        """(N,) or (N, targets), as y was."""
        found = self._outputs(X).numpy() * self.target_scale_ + self.target_mean_
        return found[:, 0] if self._flat else found

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


def as_float32(array: Array, name: str) -> Array:
    with contextlib.suppress(FloatingPointError), np.errstate(over="ignore"):
        small = np.ascontiguousarray(array, dtype=np.float32)
    if not np.isfinite(small).all():
        raise ShrinkError(
            f"{name} has values up to {np.abs(array).max():g}, too large for float32; use a StandardScaler"
        )
    return small


def is_whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    real = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    return real and math.isfinite(value)
