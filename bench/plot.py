"""The report's charts, from rows. A chart without data is left out."""

import math
from collections import defaultdict

from .registry import OURS
from .table import comparisons, latest

MARKS = "osD^vP*X"
PALETTE = ("tab:blue", "tab:orange", "tab:green", "tab:purple", "tab:brown", "tab:cyan", "tab:pink", "tab:olive")


def charts(family, kind, rows, folder):
    """Draws all charts of one family; yields (alternative text, path)."""
    compared = comparisons(rows)
    makers = {
        "speedup": lambda: speedups(compared, looks(rows)),
        "bound": lambda: bounds(compared, looks(rows)),
        "memory": lambda: memory(compared, looks(rows)),
        "dead": lambda: dead_fractions(rows),
        "training": lambda: training(rows),
    }
    for name, make in makers.items():
        figure = make()
        if figure is None:
            continue
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{family}_{name}_{kind}.png"
        figure.savefig(path, dpi=110)
        yield f"{family}: {name}, {kind}", path


def looks(rows):
    """{provider: (colour, mark)}: ours is red, the yardstick black, on every chart."""
    found = {OURS: ("tab:red", "o")}
    found |= {row["provider"]: ("black", "|") for row in rows if row.get("role") == "plain"}
    rest = sorted({row["provider"] for row in rows} - set(found))
    return found | {name: (PALETTE[k % len(PALETTE)], MARKS[k % len(MARKS)]) for k, name in enumerate(rest)}


def readable(*axes):
    for axis in axes:
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(lambda x, _: f"{x:g}" if f"{x:e}"[0] in "25" else "")


def new_figure(width, height, **grid):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(squeeze=False, **grid)


def dots(lines, label, style):
    """One line per case, one dot per series; lines: [(case, {series: value})], the first on top."""
    if not any(values for _, values in lines):
        return None
    figure, ((axes,),) = new_figure(10, 1.2 + 0.24 * len(lines))
    series = sorted({name for _, values in lines for name in values})
    for name in series:
        points = [(values[name], -k) for k, (_, values) in enumerate(lines) if name in values]
        colour, mark = style[name]
        axes.plot(
            *zip(*points, strict=True), mark, color=colour, label=name, markersize=6, markeredgewidth=2 * (mark == "|")
        )
    axes.axvline(1, color="gray", linewidth=1)
    axes.set_yticks([-k for k in range(len(lines))], [case for case, _ in lines], fontsize=7)
    axes.set_xscale("log")
    readable(axes.xaxis)
    axes.set_xlabel(label)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def speedups(compared, style):
    """Every other provider's time over ours, the yardstick's too."""
    lines = []
    for c in compared:
        others = [*c.rivals, *c.paths, *([c.plain] if c.plain else [])]
        lines.append((c.ours["case"], {row["provider"]: row["median_ms"] / c.ours["median_ms"] for row in others}))
    return dots(lines, "time over ours: right of 1 we are faster", style)


def bounds(compared, style):
    """The bound's time over that of each provider."""
    lines = []
    for c in compared:
        if not c.bounds:
            continue
        bound = max(row["median_ms"] for row in c.bounds)
        shown = [c.ours, *c.rivals, *([c.plain] if c.plain else [])]
        lines.append((c.ours["case"], {row["provider"]: bound / row["median_ms"] for row in shown}))
    return dots(lines, "fraction of the bound: 1 is as fast as the machine multiplies or copies", style)


def memory(compared, style):
    """Bytes over the yardstick's, or over ours where it has none."""
    lines = []
    for c in compared:
        for key in ("saved_bytes", "peak_bytes"):
            shown = [row for row in (c.ours, c.plain, *c.rivals) if row and row.get(key)]
            base = (c.plain or {}).get(key) or c.ours.get(key)
            if base and len(shown) > 1:
                lines.append((c.ours["case"], {row["provider"]: row[key] / base for row in shown}))
    return dots(lines, "memory over the yardstick's", style)


def dead_fractions(rows):
    """Time over the yardstick's against the dead fraction: one panel per kind of case, one line per provider."""
    panels = defaultdict(lambda: defaultdict(list))
    for group in latest(rows).values():
        plain = next((r["median_ms"] for r in group if r.get("role") == "plain" and r["median_ms"]), None)
        for row in group:
            if plain and row["median_ms"] and "dead" in row and row["role"] != "plain":
                name = row.get("mode") or row.get("part") or row["family"]
                panels[name][row["provider"]].append((100 * row["dead"], row["median_ms"] / plain))
    if not panels:
        return None
    style = looks(rows)
    figure, (line,) = new_figure(4 * len(panels), 4, ncols=len(panels))
    for axes, (name, lines) in zip(line, panels.items(), strict=True):
        for provider, points in sorted(lines.items()):
            axes.plot(*zip(*sorted(points), strict=True), "o-", color=style[provider][0], label=provider, markersize=4)
        axes.set(title=name, xscale="log", yscale="log", xlabel="dead, %")
        readable(axes.xaxis, axes.yaxis)
        axes.grid(alpha=0.25, which="both")
        axes.legend(fontsize=6, frameon=False)
    line[0].set_ylabel("time over the yardstick's")
    return figure


def training(rows):
    """Step time and peak memory over training, one column per case."""
    groups = [[r for r in group if r.get("curve")] for group in latest(rows).values()]
    groups = [group for group in groups if group]
    if not groups:
        return None
    style = looks(rows)
    figure, (above, below) = new_figure(max(6, 4.5 * len(groups)), 6, nrows=2, ncols=len(groups), sharex="col")
    for top, bottom, group in zip(above, below, groups, strict=True):
        for row in group:
            steps, times, peaks = zip(*(point[:3] for point in row["curve"]), strict=True)
            colour = style[row["provider"]][0]
            top.plot(steps, times, color=colour, label=row["provider"])
            bottom.plot(steps, [peak / 1e6 for peak in peaks], color=colour)
        case = group[0]["case"]
        cut = case.find(",", math.ceil(len(case) / 3)) + 1
        top.set(title=f"{case[:cut]}\n{case[cut:].strip()}", yscale="log")
        bottom.set(xlabel="step", yscale="log")
        for axes in (top, bottom):
            readable(axes.yaxis)
            axes.grid(alpha=0.25, which="both")
    above[0].legend(fontsize=7, frameon=False)
    above[0].set_ylabel("ms per step")
    below[0].set_ylabel("peak memory, MB")
    return figure
