"""bench/REPORT.md and its charts, made only from the rows of bench/results."""

import fnmatch
import tomllib
from pathlib import Path

from . import details, plot, rows
from .table import comparisons, latest, milliseconds, wrong

REASONS = Path(__file__).with_name("reasons.toml")
TITLES = {
    "layers": "Filtered layers",
    "compaction": "Compaction",
    "collection": "A whole collection",
    "steps": "Training steps",
    "end_to_end": "Training to the same accuracy",
    "graph": "The graph: trace, plan, collect",
}
MEMORY = {
    "saved_bytes": "kept for backward",
    "peak_bytes": "peak memory",
    "rise_bytes": "rise of the peak",
}


INTRODUCTION = """\
# What compaction and fusion buy

Made by `python -m bench report` from the rows in [results](results); `make bench` makes such rows on any machine.

Times are medians of interleaved runs. **ratio**: ours over the yardstick (the plain layer, `copy_`, a training step, a network
that has the final size from the start). **against**: a rival's time over ours; below 1 we lose, and the worst stands first;
below 0.97 with the reason. **of the bound**: the time of a matmul of as many operations, or of a `copy_` of as many bytes as
must move, over ours; above 100% where the library multiplies faster inside a convolution than in its matmul. A provider whose
result is wrong has no time. *noisy*: a timing whose 80th percentile is above 1.2 times its 20th is part of the line."""
NO_GPU = "**There are no GPU rows: no GPU was at hand.** `bench/gpu.sh OUTDIR` makes them."


def write(results, out):
    """Write REPORT.md and charts/*.png under ``out``; prints the losing cases that lack a reason."""
    found, out = rows.read(results), Path(out)
    text = [INTRODUCTION] + ([] if any(kind_of(row) == "cuda" for row in found) else ["", NO_GPU])
    reasons, missing = tomllib.loads(REASONS.read_text())["reason"], []
    for kind in ("cuda", "cpu"):
        here = [row for row in found if kind_of(row) == kind]
        if not here:
            continue
        text += ["", f"## {'GPU' if kind == 'cuda' else 'CPU'}", "", *machines(here)]
        others = sorted({row["family"] for row in here if row["median_ms"] is not None} - set(TITLES))  # times alone
        for family in [*TITLES, *others]:
            mine = [row for row in here if row["family"] == family]
            if mine:
                text += ["", f"### {TITLES.get(family, family)} ({kind})", "", *table(mine, reasons, missing)]
                text += [*refused(mine), *details.contestants(mine), *details.device_counts(mine)]
                drawn = plot.charts(family, kind, mine, out / "charts")
                text += [f"\n![{alt}](charts/{path.name})" for alt, path in drawn]
    out.mkdir(parents=True, exist_ok=True)
    (out / "REPORT.md").write_text("\n".join(text) + "\n")
    print(f"wrote {out / 'REPORT.md'}")
    for case in missing:
        print(f"a lost case without a reason in {REASONS.name}: {case}")
    return 0


def kind_of(row):
    return row.get("kind", "cpu")


def machines(found):
    """What the shown rows were measured with, one line per machine and version."""
    shown = [row for group in latest(found).values() for row in group]
    lines = set()
    for row in shown:
        words = [row["device"], f"{row['threads']} threads", f"torch {row['torch']}"]
        words += [f"{key} {row[key]}" for key in ("triton", "driver") if row.get(key)]
        lines.add(", ".join(words))
    commits = sorted({row["commit"] for row in shown if row["commit"]})
    quick = ["Small sizes (`--quick`) where no full run is there."] if any(row.get("quick") for row in shown) else []
    return [f"- {line}" for line in sorted(lines)] + ["", *quick, f"Commits: {', '.join(commits)}."]


def table(found, reasons, missing):
    """The worst speedup first; one column per rival, and per path of ours."""
    compared = comparisons(found)
    rivals = sorted({row["provider"] for c in compared for row in (*c.rivals, *c.paths)})
    memory = next((key for key in MEMORY if any(key in c.ours for c in compared)), None)
    columns = {
        "case": lambda c: c.ours["case"] + (" *noisy*" if c.noisy else ""),
        "ours": lambda c: milliseconds(c.ours),
    }
    if any(c.plain for c in compared):
        columns["ratio"] = lambda c: f"{c.ratio:.2f}" if c.plain else ""
    for name in sorted({row["provider"] for c in compared for row in c.yardsticks}):
        columns[f"ratio to {name}"] = lambda c, name=name: share_of(c, name)
    for name in rivals:
        columns[f"against {name}"] = lambda c, name=name: against(c, name)
    if any(c.bounds for c in compared):
        columns["of the bound"] = lambda c: f"{c.fraction:.0%}" if c.bounds else ""
    if memory:
        columns[f"{MEMORY[memory]}: ours, yardstick, best rival"] = lambda c: sizes(c, memory)
    if any(c.loses for c in compared):
        columns["why lost"] = lambda c: reason(c, reasons) or "not explained yet" if c.loses else ""
        missing += [c.what for c in compared if c.loses and not reason(c, reasons)]
    return details.as_markdown(list(columns), [[cell(c) for cell in columns.values()] for c in compared])[1:]


def share_of(comparison, name):
    """Our time over that of yardstick ``name``."""
    times = {row["provider"]: row["median_ms"] for row in comparison.yardsticks}
    return f"{comparison.ours['median_ms'] / times[name]:.2f}" if name in times else ""


def against(comparison, name):
    """The time of provider ``name`` over ours, bold where we lose."""
    times = {row["provider"]: row["median_ms"] for row in (*comparison.rivals, *comparison.paths)}
    return speedup(times[name] / comparison.ours["median_ms"]) if name in times else ""


def sizes(c, key):
    return ", ".join(size(row.get(key)) for row in (c.ours, c.plain, *c.rivals[:1]) if row)


def speedup(value):
    return f"**{value:.2f}x**" if value < 1 else f"{value:.2f}x"


def reason(comparison, reasons):
    row = comparison.ours
    fits = (r["why"] for r in reasons if r["family"] == row["family"] and fnmatch.fnmatch(row["case"], r["case"]))
    return next(fits, "")


def refused(found):
    """Providers without a time, because their result was wrong."""
    lines = [f"- {row['case']}: {row['provider']}: {row.get('error', 'its result differs')}" for row in wrong(found)]
    return ["", "No time, because the result was wrong:", "", *lines] if lines else []


def size(count):
    if count is None:
        return "-"
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000 or unit == "GB":
            return f"{count:.3g} {unit}"
        count /= 1000
    return None
