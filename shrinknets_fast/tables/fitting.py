"""``fit`` from its arguments to its files."""

import json
import warnings
from pathlib import Path

import torch

from ..errors import ShrinkError
from ..training import files, picture
from ..training.refusal import Refusal, require
from ..training.versions import version, versions
from . import columns, reading, targets
from .program import Program, exported, preparation

INSTALL = "install the sklearn extra: pip install 'shrinknets_fast[sklearn]'"
PROGRAM, SUMMARY, PICTURE = "plain.pt2", "summary.json", "fit.png"
LEAST = 10  # rows


def fit(arguments):
    """The exit status. Everything that can be refused is refused before the first file is written."""
    require("tqdm", "tqdm", "fit", INSTALL)
    require("sklearn", "scikit-learn", "fit", INSTALL)
    figure_class = require("matplotlib.figure", "matplotlib", "fit", INSTALL).Figure
    stem = "table" if arguments.data == "-" else Path(arguments.data).stem
    out = arguments.out or f"runs/{stem}"
    files.check_folder(out)
    table = reading.read(arguments.data, arguments.target, arguments.delimiter, arguments.header, arguments.encoding)
    names = columns.names_of(table)
    for name in ("target", "exclude", "category"):
        columns.checked_names(table, names, getattr(arguments, name), f"--{name}")
    if both := sorted(set(arguments.target) & {*arguments.exclude, *arguments.category}):
        raise Refusal(f"--target {both[0]}: is in --exclude or --category too")
    if len(table.rows) < LEAST:
        raise Refusal(
            f"{table.name}: row {table.numbers[-1]} is the last: {len(table.rows)} rows, expected {LEAST} or more"
        )
    target = targets.find(table, names, arguments.target, arguments.task, arguments.decimal)
    used, left_out = columns.find(table, names, target.names, arguments.exclude, arguments.category, arguments.decimal)
    x = columns.matrix(table, used, arguments.decimal)
    print(f"{table.name}: {target.task} ({target.why}), {len(x):,} rows, {len(used)} columns", flush=True)
    for why in left_out:
        print(f"left out: {why}", flush=True)
    fitted = Fitted(arguments, target, used, x)
    with files.own_folder(out) as folder:
        fitted.write(folder, figure_class, table, left_out, target)
    print(fitted.words(folder))
    return 0


class Fitted:
    """The preparation and the estimator, fitted to the rows that are not held out, and their score on those that are."""

    def __init__(self, arguments, target, used, x):
        self.arguments, self.used, self.x = arguments, used, x
        inside, outside = split(arguments, target, len(x))
        self.rows = {"fitted": len(inside), "held_out": len(outside)}
        self.prepared = preparation(used)
        self.estimator = make(arguments, target.task)
        values = targets.array(target)
        try:
            self.estimator.fit(self.prepared.fit_transform(x[inside].numpy()), values[inside])
        except (ShrinkError, torch.OutOfMemoryError) as error:
            raise Refusal(f"{arguments.data}: fitting stopped: {error}") from error
        self.score = float(self.estimator.score(self.transformed(outside), values[outside]))
        self.score_name = "accuracy" if target.task == "classification" else "R2"

    def transformed(self, rows):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found unknown categories")  # they count as the rarest do
            return self.prepared.transform(self.x[rows].numpy())

    def write(self, folder, figure_class, table, left_out, target):
        """The summary last, so that it says that everything is there."""
        (folder / SUMMARY).unlink(missing_ok=True)
        program = exported(Program(self.used, self.prepared, self.estimator), self.x)
        files.replace(folder / PROGRAM, lambda file: torch.export.save(program, file))
        summary = self.summary(table, left_out, target)
        summary["plain_max_abs_diff"] = self.difference(folder)
        sizes = zip(summary["hidden"], summary["sizes"], strict=True)
        title = f"{table.name}, λ = {self.estimator.lam_:g}: {', '.join(f'{a:,} → {b:,}' for a, b in sizes)}"
        title += f", {self.score_name} {self.score:.3f}"
        words = "cross entropy" if target.task == "classification" else "mean squared error, standardised"
        picture.draw(figure_class, self.estimator.account_, title, words, folder / PICTURE)
        files.replace_text(folder / SUMMARY, json.dumps(summary, indent=2) + "\n")
        self.shown = summary

    @torch.no_grad()
    def difference(self, folder):
        """The largest between the program as it was written and the estimator."""
        program = torch.export.load(folder / PROGRAM).module()
        x = self.transformed(slice(None))
        is_classifier = hasattr(self.estimator, "classes_")
        known = torch.from_numpy(self.estimator.predict_proba(x) if is_classifier else self.estimator.predict(x))
        return float((program(self.x) - known.reshape(len(x), -1)).abs().max())

    def summary(self, table, left_out, target):
        estimator = self.estimator
        return {
            "task": target.task,
            "why": target.why,
            self.score_name.lower(): self.score,
            "rows": self.rows,
            "header": table.header is not None,
            "width": table.width,
            "decimal": self.arguments.decimal,
            "targets": target.names,
            "target_indices": [columns.names_of(table).index(name) for name in target.names],
            "classes": estimator.classes_.tolist() if target.task == "classification" else None,
            "columns": [vars(column) for column in self.used],
            "left_out": left_out,
            "lam": estimator.lam_,
            "search": estimator.search_,
            "hidden": list(self.arguments.hidden),
            "sizes": list(estimator.sizes_),
            "parameters": estimator.n_parameters_,
            "epochs": estimator.n_iter_,
            "arguments": vars(self.arguments),
            "versions": {**versions(), "scikit-learn": version("scikit-learn")},
        }

    def words(self, folder):
        shown = self.shown
        sizes = ", ".join(f"{a:,} to {b:,}" for a, b in zip(shown["hidden"], shown["sizes"], strict=True))
        rows = f"{self.rows['held_out']:,} rows held out"
        return "\n".join(
            [
                f"hidden units: from {sizes}; {shown['parameters']:,} parameters; lambda {shown['lam']:g}",
                f"{self.score_name} {self.score:.4f} on {rows}",
                f"look at {folder}/{PICTURE}; beside it: {PROGRAM}, {SUMMARY}",
                f"new rows: python -m shrinknets_fast predict {folder} rows.csv",
            ]
        )


def split(arguments, target, rows):
    """(rows to fit, rows held out); with classes in the same shares where each has rows enough."""
    from sklearn.model_selection import train_test_split

    options = {"test_size": arguments.test_share, "random_state": arguments.seed}
    if target.task == "classification":
        try:
            return train_test_split(range(rows), stratify=target.values, **options)
        except ValueError:  # a class of one row, or more classes than rows held out
            pass
    return train_test_split(range(rows), **options)


def make(arguments, task):
    from ..sklearn import ShrinkClassifier, ShrinkRegressor

    kind = ShrinkClassifier if task == "classification" else ShrinkRegressor
    options = {
        name: getattr(arguments, name) for name in ("epochs", "batch_size") if getattr(arguments, name) is not None
    }
    rates = {"lam": arguments.lam, "lr": arguments.lr, "filter_lr": arguments.filter_lr}
    return kind(tuple(arguments.hidden), **rates, **options, random_state=arguments.seed, verbose=True)
