"""From rows to comparisons: ours against the plain lower bound and the best rival, losing cases first."""

import math
from dataclasses import dataclass

EVEN = 0.97
KEYS = ("family", "case", "device", "threads", "torch")


@dataclass(frozen=True)
class Comparison:
    """Everything that was timed in one case of one run, by role; times are rows."""

    ours: dict
    plain: dict | None
    rivals: tuple  # the fastest first
    bounds: tuple
    paths: tuple
    yardsticks: tuple

    @property
    def what(self):
        return f"{self.ours['family']}: {self.ours['case']}"

    @property
    def ratio(self):
        """Ours over plain: 1 is the least a filter can cost."""
        return self.ours["median_ms"] / self.plain["median_ms"] if self.plain else None

    @property
    def speedup(self):
        """The best rival over ours: below 1 we lose."""
        return self.rivals[0]["median_ms"] / self.ours["median_ms"] if self.rivals else None

    @property
    def fraction(self):
        """Of the bound that binds: 1 is as fast as the machine copies or multiplies."""
        return max((b["median_ms"] for b in self.bounds), default=math.nan) / self.ours["median_ms"]

    @property
    def loses(self):
        """Clearly: a few per cent lie within what a repeated run moves by."""
        return self.speedup is not None and self.speedup < EVEN

    @property
    def noisy(self):
        return any(row.get("noisy") for row in (self.ours, self.plain, *self.rivals[:1]) if row)


def latest(rows):
    """{key: the rows of its last run}; a full run replaces quick ones on the same machine."""
    full = {(r["family"], r["device"]) for r in rows if not r.get("quick")}
    found = {}
    for row in rows:
        if row.get("quick") and (row["family"], row["device"]) in full:
            continue
        runs = found.setdefault(tuple(row.get(key) for key in KEYS), {})
        runs.setdefault(row.get("run", row["commit"]), []).append(row)
    return {key: list(runs.values())[-1] for key, runs in found.items()}


def comparisons(rows):
    """Comparisons of the cases that ours has a time in, the worst speedup first, then the worst ratio."""
    found = []
    for group in latest(rows).values():
        timed = [row for row in group if row["median_ms"] is not None]
        by_role = {}
        for row in sorted(timed, key=lambda row: row["median_ms"]):
            by_role.setdefault(row.get("role", "ours"), []).append(row)
        for ours in by_role.get("ours", []):
            plain = by_role.get("plain", [None])[0]
            rest = (tuple(by_role.get(role, ())) for role in ("rival", "bound", "path", "yardstick"))
            found.append(Comparison(ours, plain, *rest))
    return sorted(found, key=lambda c: (c.speedup or math.inf, -(c.ratio or 0)))


def wrong(rows):
    """The rows of providers whose result was wrong, of the last runs."""
    return [row for group in latest(rows).values() for row in group if row.get("match") is False]


HEAD = ("what", "ours", "yardstick", "ratio", "best rival", "its time", "speedup")


def cells(c):
    """A row of the table, as text."""
    plain = f"{milliseconds(c.plain)} ({c.plain['provider']})" if c.plain else ""
    ratio = f"{c.ratio:.2f}" if c.plain else ""
    rival = (c.rivals[0]["provider"], milliseconds(c.rivals[0]), f"{c.speedup:.2f}x") if c.rivals else ("", "", "")
    what = c.what + (" (noisy)" if c.noisy else "")
    return (what, milliseconds(c.ours), plain, ratio, *rival)


def milliseconds(row):
    return f"{row['median_ms']:.3g} ms" if row["median_ms"] < 1000 else f"{row['median_ms']:,.0f} ms"


def as_text(found):
    """The table for a terminal."""
    if not found:
        return "no case has a time of ours"
    lines = [HEAD, *(cells(c) for c in found)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEAD))]
    text = ["ratio: ours over the yardstick; speedup: the best rival over ours, below 1 we lose; losing cases first"]
    text += ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join(text)
