"""A CSV file as rows of text, with the row and column of whatever is wrong with it."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..training.refusal import Refusal

DELIMITERS = ",;\t|"
SNIFFED = 20  # rows
MISSING = frozenset({"", "na", "n/a", "nan", "null", "?"})


@dataclass
class Table:
    """header: None where the first row is data. numbers: of each row in the file, from 1, the header and blank rows counted."""

    name: str
    header: list[str] | None
    rows: list[list[str]]
    numbers: list[int]

    @property
    def width(self) -> int:
        return len(self.rows[0])

    def place(self, row: int, column: str) -> str:
        """For messages; row: an index into ``rows``."""
        return f"{self.name}: row {self.numbers[row]}, column {column!r}"


def read(path: str, names: Iterable[str], delimiter: str | None, header: str, encoding: str) -> Table:
    """path: "-" is the standard input. names: columns that are asked for; a first row with one of them is a header.

    header: "yes", "no" or "auto": the first row is one if it has a name asked for, or no number and no empty cell.
    """
    name = "standard input" if path == "-" else path
    text = text_of(path, name, encoding)
    records = parsed(text, delimiter or sniffed(text), name)
    if not records:
        raise Refusal(f"{name}: row 1 is missing: the file is empty")
    first_number, first = records[0]
    for number, cells in records:
        if len(cells) != len(first):
            what = (
                f"ends after column {len(cells)}" if len(cells) < len(first) else f"goes on after column {len(first)}"
            )
            raise Refusal(f"{name}: row {number} {what}: {len(cells)} columns, but {len(first)} in row {first_number}")
    has_header = looks_like_header(first, set(names)) if header == "auto" else header == "yes"
    rows = records[1:] if has_header else records
    if not rows:
        raise Refusal(f"{name}: row {first_number + 1} is missing: there is nothing below the header")
    return Table(name, first if has_header else None, [cells for _, cells in rows], [number for number, _ in rows])


def text_of(path: str, name: str, encoding: str) -> str:
    try:
        content = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise Refusal(f"{name}: cannot be read: {error.strerror}") from error
    try:
        return content.decode(encoding)
    except LookupError as error:
        raise Refusal(f"--encoding {encoding}: {error}") from error
    except UnicodeDecodeError as error:
        row = content.count(b"\n", 0, error.start) + 1
        column = error.start - content.rfind(b"\n", 0, error.start)
        where = f"{name}: row {row}, byte {column}"
        raise Refusal(f"{where}: {content[error.start]:#x} is not {encoding}; --encoding says what it is") from error


def sniffed(text: str) -> str:
    """The delimiter that gives the first rows the same number of columns, the more the better; a comma where none does."""
    found = {}
    for delimiter in DELIMITERS:
        widths = []
        try:
            for cells in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True):
                widths += [len(cells)] if cells else []
                if len(widths) == SNIFFED:
                    break
        except csv.Error:
            continue
        if widths and max(widths) > 1:
            found[delimiter] = (widths.count(widths[0]) / len(widths), widths[0])
    return max(found, key=lambda delimiter: found[delimiter], default=",")


def parsed(text: str, delimiter: str, name: str) -> list[tuple[int, list[str]]]:
    """(row, its cells) of all rows that are not blank."""
    records: list[tuple[int, list[str]]] = []
    number = 0
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
        for number, cells in enumerate(reader, 1):
            if "\0" in "".join(cells):
                raise Refusal(f"{name}: row {number} cannot be read: it has a NUL byte")
            if cells:
                records.append((number, [cell.strip() for cell in cells]))
    except csv.Error as error:
        raise Refusal(f"{name}: row {number + 1} cannot be read: {error}") from error
    return records


def looks_like_header(cells: list[str], names: set[str]) -> bool:
    if names & set(cells):
        return True
    return not any(is_missing(cell) or as_number(cell) is not None for cell in cells)


def is_missing(cell: str) -> bool:
    return cell.lower() in MISSING


def as_number(cell: str, decimal: str = ".") -> float | None:
    """None where the cell is no number; Python's underscores are none."""
    if "_" in cell:
        return None
    try:
        return float(cell.replace(decimal, ".") if decimal != "." else cell)
    except ValueError:
        return None
