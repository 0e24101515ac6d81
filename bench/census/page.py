"""docs/models.md, made from the rows: what was lost first, and one table of before and now."""

import statistics
from collections import Counter
from pathlib import Path

from . import runner

PAGE = Path(__file__).parents[2] / "docs/models.md"
BEFORE = runner.ROWS.with_name("census_before.jsonl")
# What stands first is the worst.
ORDER = ("wrong", "crashed", "timeout", "refused", "nothing to remove", "exact (amplifies rounding)", "exact")

HEAD = """\
# Models

A census of {count} public architectures that nobody tuned for, each in a process of its own on one core: `add_filters` with
`residual="tied"`, a collector with Adam, {dead:.0%} of the thetas of every filter killed at random, one collection; float64,
small images and short texts, no dropout. Made by `python -m bench census --page` from the rows that `make census` appends
({torch}).

The same training step is done twice from the same state: with the dead features still there, and after their collection. Compared
are the outputs in training and in evaluation mode, every gradient, and Adam's moments after the step; the largest difference,
relative to the tensor's largest entry, is given.

- **exact**: all differences are at most {exact:.0e}. *amplifies rounding*: they are not, but a change of all parameters and
  inputs by one unit in their last place moves the masked model as far; both figures are given.
- **nothing to remove**: no filter could be placed, or none of the dead features may leave.
- **refused**: a `ShrinkError`, with its line. **crashed**: any other. **timeout**: not done within the limit.
- **covered**: the share of the parameters that can shrink. **removed**: the share that this collection took.
- **Torch-Pruning**: what its magnitude pruner (version 1.6.1, no hints) removes of the same model at a ratio of {dead:.0%}; it
  also prunes hidden sizes, whose removal changes the output, and is not asked to be exact. It fails where it raises, needs more
  than 20 s, or the pruned model does not run or has outputs of other shapes.
- **seconds**: of one core, for `add_filters` and the collector. **why not the rest**: what keeps the most parameters.
"""


def write(rows_path=runner.ROWS, before_path=BEFORE, page=PAGE):
    """The page from the newest row of each model. Where there are none, those of ``before_path`` are all there is."""
    before, now = newest(runner.read(before_path)), newest(runner.read(rows_path))
    text = as_markdown(now or before, before if now else {})
    Path(page).write_text(text)
    return page


def newest(found):
    """{(library, model): its last row}"""
    return {(row["library"], row["case"]): row for row in found}


def kind(row):
    """The status without its line."""
    return row["status"].partition(":")[0]


def as_markdown(now, before):
    from .one import DEAD, EXACT

    versions = sorted({f"torch {row['torch']}" for row in now.values()})
    text = [HEAD.format(count=len(now), dead=DEAD, exact=EXACT, torch=", ".join(versions) or "no rows yet")]
    columns = {"before": [before[key] for key in now if key in before], "now": list(now.values())}
    if not before:
        del columns["before"]
    text += table(["", *columns], [[name, *(say(rows) for rows in columns.values())] for name, say in SUMMARY.items()])
    text += ["", "## By model", ""]
    ordered = sorted(now.values(), key=lambda row: (ORDER.index(kind(row)), row["removed"] or 0.0, row["case"]))
    text += table(COLUMNS, [cells(row) for row in ordered])
    return "\n".join(text) + "\n"


def table(head, lines):
    return ["| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *lines]]


def median(values, form="{:.0%}"):
    values = list(values)
    return form.format(statistics.median(values)) if values else "-"


def by_status(rows):
    counts = Counter(map(kind, rows))
    return "; ".join(f"{counts[name]} {name}" for name in ORDER if counts[name]) or "-"


def collected(rows):
    """Those that were traced and collected, or have nothing to remove."""
    good = sum(kind(row).startswith(("exact", "nothing")) for row in rows)
    return f"{good / len(rows):.0%}" if rows else "-"


def slowest(rows):
    row = max((r for r in rows if r["made_s"] is not None), key=lambda r: r["made_s"], default=None)
    return f"{row['made_s']:.0f} s ({row['case']})" if row else "-"


def rival(row):
    """{"removed", "failed"} of Torch-Pruning, or nothing."""
    return row["rival"] or {"removed": None, "failed": None}


def where_it_ran(rows):
    return [row for row in rows if rival(row)["removed"] is not None]


SUMMARY = {
    "models": lambda rows: str(len(rows)),
    "by status": by_status,
    "traced and collected": collected,
    "without any filter": lambda rows: str(sum(row["filters"] == 0 for row in rows)),
    "covered, median": lambda rows: median(row["coverage"] for row in rows if row["coverage"] is not None),
    "removed, median": lambda rows: median(row["removed"] or 0.0 for row in rows),
    "more than 20 s": lambda rows: str(sum((row["made_s"] or 0) > 20 for row in rows)),
    "slowest": slowest,
    "Torch-Pruning ran on": lambda rows: str(len(where_it_ran(rows))),
    "Torch-Pruning removed there, median": lambda rows: median(rival(row)["removed"] for row in where_it_ran(rows)),
    "removed there, median": lambda rows: median(row["removed"] or 0.0 for row in where_it_ran(rows)),
}


COLUMNS = ["model", "status", "parameters", "filters", "covered", "removed", "largest difference", "Torch-Pruning"]
COLUMNS += ["seconds", "MB", "why not the rest"]


def cells(row):
    def shown(name, form):
        return "" if row[name] is None else form.format(row[name])

    differences = [row[name] for name in ("output", "gradients", "state", "placed") if row[name] is not None]
    worst = f"{max(differences):.0e}" if differences else ""
    if kind(row) == "exact (amplifies rounding)":
        worst += f" ({row['perturbed']:.0e} by one unit)"
    removed = rival(row)["removed"]
    other = (
        f"{removed:.0%}" if removed is not None else f"failed: {rival(row)['failed']}" if rival(row)["failed"] else ""
    )
    sizes = [
        shown("parameters", "{:,}"),
        shown("filters", "{}"),
        shown("coverage", "{:.0%}"),
        shown("removed", "{:.0%}"),
    ]
    costs = [shown("made_s", "{:.1f}"), shown("peak_mb", "{:,.0f}")]
    line = [
        f"{row['case']} ({row['library']})",
        row["status"],
        *sizes,
        worst,
        other,
        *costs,
        "; ".join(row["reasons"] or []),
    ]
    return [cell.replace("|", "\\|").replace("<", "&lt;").replace("[", "\\[") for cell in line]
