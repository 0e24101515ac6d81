"""summary.json, and the same for people."""

from .models import weight_count
from .state import recorded
from .versions import versions


def summarise(trainer, plain, difference, parameters_before, interrupted):
    history = trainer.history
    last = history.of_kind("epoch")[-1]
    return {
        "test_accuracy": last["test_accuracy"],
        "test_loss": last["test_loss"],
        "features": history.features(trainer),
        "parameters_before": parameters_before,
        "parameters_after": weight_count(plain),
        "seconds": round(trainer.seconds, 3),
        "epochs": trainer.epochs_done,
        "steps": trainer.step_count,
        "collections": len(history.of_kind("collection")),
        "plain_max_abs_diff": difference,
        "interrupted": interrupted,
        "arguments": recorded(trainer.arguments),
        "versions": versions(),
    }


def table(summary, out):
    """A few lines: sizes per layer, then what they bought."""
    rows = [(name, total, alive) for name, (alive, total) in summary["features"].items()]
    rows.append(("features", sum(row[1] for row in rows), sum(row[2] for row in rows)))
    rows.append(("parameters", summary["parameters_before"], summary["parameters_after"]))
    lines = [f"{'':<12}{'before':>12}{'after':>12}{'removed':>10}"]
    for name, before, after in rows:
        lines.append(f"{name:<12}{before:>12,}{after:>12,}{1 - after / before:>10.1%}")
    stopped = ", stopped by Ctrl-C" if summary["interrupted"] else ""
    effort = f"{summary['epochs']} epochs in {summary['seconds']:.1f} s with {summary['collections']} collections"
    latency = summary["latency_ms"].items()
    times = ", ".join(f"{batch} {ms['before']:.3g} ms before, {ms['after']:.3g} ms after" for batch, ms in latency)
    return "\n".join(
        [
            "",
            *lines,
            "",
            f"test accuracy {summary['test_accuracy']:.2%} after {effort}{stopped}",
            f"a forward pass of the plain network: {times}",
            f"plain.pt2 and the trained network differ by {summary['plain_max_abs_diff']:.1e} at most",
            f"look at {out}/history.png; beside it: summary.json, history.jsonl, plain.pt2, last.pt",
        ]
    )
