"""What the columns of a table are: numbers or categories; and a table as a matrix."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from ..training.refusal import Refusal
from .reading import Table, as_number, is_missing

MOSTLY = 0.9  # of the cells: a column with so many numbers is one of numbers, and a text in it a mistake
MANY = 50  # different texts: a column with more, and more than half as many as rows, is a name or a key
COMMA = re.compile(r"[+-]?\d+,\d+")


@dataclass(frozen=True)
class Column:
    """index: in the file; values: the texts of a category, None for numbers."""

    name: str
    index: int
    values: tuple[str, ...] | None = None


def names_of(table: Table) -> list[str]:
    """Those of the header, or "1", "2" and so on; a column without a name in a header has the name ""."""
    if table.header is None:
        return [str(k) for k in range(1, table.width + 1)]
    names = table.header
    for k, name in enumerate(names):
        if name and name in names[:k]:
            where = f"columns {names.index(name) + 1} and {k + 1}"
            raise Refusal(f"{table.name}: row {table.numbers[0] - 1}: {where} have the same name, {name!r}")
    return names


def checked_names(table: Table, names: list[str], asked: Iterable[str], argument: str) -> list[str]:
    asked = list(asked)
    for k, name in enumerate(asked):
        if name not in names or not name:
            there = ", ".join(repr(known) for known in names[:20]) + (" ..." if len(names) > 20 else "")
            raise Refusal(f"{argument} {name}: {table.name} has no such column in row 1; its columns are {there}")
        if name in asked[:k]:
            raise Refusal(f"{argument} {name}: is given twice")
    return asked


def find(
    table: Table, names: list[str], targets: list[str], excluded: list[str], categories: list[str], decimal: str
) -> tuple[list[Column], list[str]]:
    """(the columns to learn from, why others are left out)"""
    columns, left_out = [], []
    for index, name in enumerate(names):
        if name in targets or name in excluded:
            continue
        if not name:
            left_out.append(f"column {index + 1} has no name")
            continue
        column = one(table, name, index, name in categories, decimal)
        distinct = len(column.values or ())
        if name not in categories and distinct > MANY and 2 * distinct > len(table.rows):
            left_out.append(f"column {name!r} has {distinct} different texts in {len(table.rows)} rows")
        elif all(is_missing(cells[index]) for cells in table.rows):
            left_out.append(f"column {name!r} is empty")
        else:
            columns.append(column)
    if not columns:
        raise Refusal(f"{table.name}: row 1 has no column to learn from" + "".join(f"; {why}" for why in left_out))
    return columns, left_out


def one(table: Table, name: str, index: int, is_category: bool, decimal: str) -> Column:
    cells = [(row, cells[index]) for row, cells in enumerate(table.rows) if not is_missing(cells[index])]
    texts = [] if is_category else [(row, cell) for row, cell in cells if as_number(cell, decimal) is None]
    for row, cell in texts:
        if decimal == "." and COMMA.fullmatch(cell):
            raise Refusal(f"{table.place(row, name)}: {cell!r} has a comma; --decimal , or --category {name!r}")
    if is_category or len(texts) > (1 - MOSTLY) * len(cells):
        return Column(name, index, tuple(sorted({cell for _, cell in cells})))
    if texts:
        row, cell = texts[0]
        most = f"{len(cells) - len(texts)} of {len(cells)} cells are numbers"
        raise Refusal(f"{table.place(row, name)}: {cell!r} is not a number, but {most}; else --category {name!r}")
    return Column(name, index)


def matrix(table: Table, columns: list[Column], decimal: str) -> torch.Tensor:
    """(rows, columns) in float64: numbers, codes of categories (``len(values)`` for a text that is none), NaN for missing."""
    found = torch.full((len(table.rows), len(columns)), math.nan, dtype=torch.float64)
    for k, column in enumerate(columns):
        codes = None if column.values is None else {value: code for code, value in enumerate(column.values)}
        cells = [cells[column.index] for cells in table.rows]
        if codes is not None:
            numbers = [math.nan if is_missing(cell) else float(codes.get(cell, len(codes))) for cell in cells]
        else:
            numbers = [
                math.nan if is_missing(cell) else number(table, row, column.name, cell, decimal)
                for row, cell in enumerate(cells)
            ]
        found[:, k] = torch.tensor(numbers, dtype=torch.float64)
    return found


def number(table: Table, row: int, name: str, cell: str, decimal: str) -> float:
    """Of a cell that is not missing."""
    value = as_number(cell, decimal)
    if value is None or not math.isfinite(value):
        raise Refusal(f"{table.place(row, name)}: {cell!r} is not a{' finite' if value is not None else ''} number")
    return value
