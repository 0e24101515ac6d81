"""bench/REPORT.md and its charts, made only from the rows of bench/results."""

import fnmatch
import tomllib
from pathlib import Path

from . import plot, rows
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
must move, over ours. A provider whose result is wrong has no time. *noisy*: a timing whose 80th percentile is above 1.2 times
its 20th is part of the line."""
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
        for family in sorted(
            {row["family"] for row in here}, key=[*TITLES, *sorted({r["family"] for r in here})].index
        ):
            mine = [row for row in here if row["family"] == family]
            text += [
                "",
                f"### {TITLES.get(family, family)} ({kind})",
                "",
                *table(mine, reasons, missing),
                *refused(mine),
            ]
            text += [f"\n![{alt}](charts/{path.name})" for alt, path in plot.charts(family, kind, mine, out / "charts")]
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
    """Losing cases first. One column per rival."""
    compared = comparisons(found)
    rivals = sorted({row["provider"] for c in compared for row in (*c.rivals, *c.paths)})
    memory = next((key for key in MEMORY if any(key in c.ours for c in compared)), None)
    bound, ratio = any(c.bounds for c in compared), any(c.plain for c in compared)
    head = ["case", "ours"] + ["ratio"] * ratio + [f"against {name}" for name in rivals] + ["of the bound"] * bound
    head += [f"{MEMORY[memory]}: ours, yardstick, best rival"] if memory else []
    head += ["why lost"] * any(c.loses for c in compared)
    lines = [head, ["---"] * len(head)]
    for c in compared:
        line = [c.ours["case"] + (" *noisy*" if c.noisy else ""), milliseconds(c.ours)]
        line += [f"{c.ratio:.2f}" if c.plain else ""] * ratio
        times = {row["provider"]: row["median_ms"] for row in (*c.rivals, *c.paths)}
        line += [speedup(times[name] / c.ours["median_ms"]) if name in times else "" for name in rivals]
        line += [f"{c.fraction:.0%}" if c.bounds else ""] * bound
        line += [", ".join(size(row.get(memory)) for row in (c.ours, c.plain, *c.rivals[:1]) if row)] * bool(memory)
        if c.loses:
            why = reason(c, reasons)
            missing += [] if why else [c.what]
            line.append(why or "not explained yet")
        lines.append(line + [""] * (len(head) - len(line)))
    return ["| " + " | ".join(line) + " |" for line in lines]


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
