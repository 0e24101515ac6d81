"""Further tables of the report: every contestant of a training, and what a GPU's launches and synchronisations were."""

from .table import latest, milliseconds


def as_markdown(head, lines):
    return ["", *("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *lines])] if lines else []


def contestants(found):
    """One line per contestant, in the order of time to the common accuracy."""
    lines = []
    for group in latest(found).values():
        for row in sorted((r for r in group if "best_accuracy" in r), key=lambda r: r["median_ms"]):
            first = [
                row["case"],
                row["provider"],
                f"{row['target']:.1%}",
                milliseconds(row),
                f"{row['total_s']:,.1f} s",
            ]
            size = "-".join(f"{n:,}" for n in row["features"])
            lines.append([*first, f"{row['best_accuracy']:.2%}", f"{row['peak_bytes'] / 1e6:,.1f} MB", size])
    head = ["case", "contestant", "accuracy", "time to it", "all epochs", "best accuracy", "peak memory", "final size"]
    return as_markdown(head, lines)


def device_counts(found):
    """Kernel launches, synchronisations and host time of ours, where a GPU was there."""
    lines = []
    for group in latest(found).values():
        for row in group:
            if row.get("role") == "ours" and ("launches" in row or "syncs" in row):
                host = f"{row['host_ms']:.3g} ms" if "host_ms" in row else ""
                lines.append([row["case"], str(row.get("launches", "")), str(row.get("syncs", "")), host])
    return as_markdown(["case", "launches", "synchronisations", "host time until the call returned"], lines)
