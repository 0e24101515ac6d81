"""What a table's target is: numbers to come near to, or classes to tell apart."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

from ..training.refusal import Refusal
from .columns import number
from .reading import Table, as_number, is_missing

Task = Literal["regression", "classification"]
FEW = 20  # classes: whole numbers with more different values are numbers to come near to
ROWS_PER_CLASS = 5


@dataclass
class Target:
    """values: of each row, a list of numbers, or the text of its class."""

    names: list[str]
    task: Task
    why: str
    values: list[list[float]] | list[str]


def find(table: Table, names: list[str], targets: list[str], task: Task | None, decimal: str) -> Target:
    """task: what --task says, None where it is to be found from the cells."""
    indices = [names.index(target) for target in targets]
    for (row, cells), (index, name) in itertools.product(enumerate(table.rows), zip(indices, targets, strict=True)):
        if is_missing(cells[index]):
            raise Refusal(f"{table.place(row, name)}: {cells[index]!r} is no target: it is missing")
    why = f"--task {task}"
    if task is None:
        task, why = found(table, indices, decimal)
    if task == "regression":
        pairs = list(zip(indices, targets, strict=True))
        rows = [
            [number(table, row, name, cells[index], decimal) for index, name in pairs]
            for row, cells in enumerate(table.rows)
        ]
        return Target(targets, task, why, rows)
    if len(targets) > 1:
        raise Refusal(f"--target {' '.join(targets)}: {why}, which takes one column, not {len(targets)}")
    labels = one_text_per_class([cells[indices[0]] for cells in table.rows], decimal)
    if len(set(labels)) == 1:
        where = table.place(0, targets[0])
        raise Refusal(f"{where}: {labels[0]!r} is the one class in all {len(labels)} rows; expected at least two")
    return Target(targets, task, why, labels)


def found(table: Table, indices: list[int], decimal: str) -> tuple[Task, str]:
    if len(indices) > 1:
        return "regression", f"{len(indices)} targets"
    (index,) = indices
    cells = [cells[index] for cells in table.rows]
    numbers = [as_number(cell, decimal) for cell in cells]
    texts = numbers.count(None)
    if texts > len(cells) / 10 or texts == len(cells):
        return "classification", f"{len(set(cells))} different texts"
    if texts:  # the error names the first
        return "regression", "mostly numbers"
    values = {value for value in numbers if value is not None}
    if all(value.is_integer() for value in values) and len(values) <= FEW:
        if len(values) * ROWS_PER_CLASS <= len(cells):
            return "classification", f"{len(values)} different whole numbers in {len(cells)} rows"
    return "regression", f"{len(values)} different numbers in {len(cells)} rows"


def one_text_per_class(cells: list[str], decimal: str) -> list[str]:
    """1, 1.0 and 01 are one class where all cells are numbers: that of its most frequent text."""
    numbers = [as_number(cell, decimal) for cell in cells]
    if None in numbers:
        return cells
    texts: dict[float, str] = {}
    for cell, _ in Counter(cells).most_common():
        texts.setdefault(as_number(cell, decimal) or 0.0, cell)
    return [texts[value or 0.0] for value in numbers]


def array(target: Target) -> Any:
    """As numpy: (N,) texts or numbers, (N, targets) numbers."""
    import numpy as np

    if target.task == "classification":
        return np.array(target.values)
    values = np.array(target.values, dtype=np.float64)
    return values[:, 0] if len(target.names) == 1 else values
