"""``predict``: new rows through the program that ``fit`` wrote."""

import json
import zipfile
from pathlib import Path

import torch

from ..training.refusal import Refusal
from . import reading
from .columns import Column, matrix
from .fitting import PROGRAM, SUMMARY

CHUNK = 10_000  # rows
REQUIRED = {"task", "columns", "classes", "header", "width", "decimal", "target_indices"}


def predict(arguments):
    """The exit status. Nothing is printed before all rows are known to be good."""
    summary, program = load(arguments.folder)
    columns = [Column(c["name"], c["index"], c["values"] and tuple(c["values"])) for c in summary["columns"]]
    names = [column.name for column in columns] if summary["header"] else []
    table = reading.read(arguments.rows, names, arguments.delimiter, arguments.header, arguments.encoding)
    x = matrix(table, placed(table, columns, summary), summary["decimal"])
    with torch.no_grad():
        out = torch.cat([program(part) for part in x.split(CHUNK)])
    if summary["task"] == "classification":
        lines = [summary["classes"][k] for k in out.argmax(1).tolist()]
    else:
        lines = [",".join(f"{value:.9g}" for value in row) for row in out.tolist()]
    print("\n".join(lines))
    return 0


def load(folder):
    """(summary, program)"""
    path = Path(folder) / PROGRAM
    try:
        summary = json.loads((Path(folder) / SUMMARY).read_text())
        if not REQUIRED <= summary.keys():
            raise ValueError(f"{SUMMARY} lacks {', '.join(sorted(REQUIRED - summary.keys()))}")
        if not zipfile.is_zipfile(path):  # of which torch would print its traceback first
            raise ValueError(f"{PROGRAM} is missing or broken")
        return summary, torch.export.load(path).module()
    except Exception as error:  # torch raises whatever its reading runs into
        reason = getattr(error, "strerror", None) or str(error)
        raise Refusal(f"{folder}: is no folder that fit wrote: {reason[:300]}") from error


def placed(table, columns, summary):
    """The columns with their places in this table."""
    if table.header is not None and summary["header"]:
        for column in columns:
            found = table.header.count(column.name)
            if found != 1:
                what = "is missing" if not found else f"is there {found} times"
                row = table.numbers[0] - 1
                raise Refusal(f"{table.name}: row {row}: column {column.name!r} {what}; its columns are {table.header}")
        return [Column(c.name, table.header.index(c.name), c.values) for c in columns]
    targets, width = summary["target_indices"], summary["width"]
    if table.width == width:
        return columns
    if table.width == width - len(targets):
        return [Column(c.name, c.index - sum(t < c.index for t in targets), c.values) for c in columns]
    expected = f"{width - len(targets)} columns, or {width} with the targets"
    raise Refusal(
        f"{table.name}: row {table.numbers[0]}: {table.width} columns without known names, expected {expected}"
    )
