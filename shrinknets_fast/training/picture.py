"""history.png: the living features of each layer and the loss over the steps, after the paper's Figure 1."""

from .files import replace

FLOOR = 0.5  # where a layer without living features is drawn on the logarithmic axis
WINDOW = 100  # the smoothed loss averages a hundredth of the run


def draw(figure_class, history, title, loss, path):
    """history: a History, or what has its ``curves``, ``of_kind`` and ``losses``; loss: the words for its axis."""
    figure = figure_class(figsize=(8, 6), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    draw_sizes(top, history)
    draw_loss(bottom, history, loss)
    figure.suptitle(title)
    replace(path, lambda file: figure.savefig(file, format="png", dpi=130))


def title(summary):
    arguments = summary["arguments"]
    sizes = ["-".join(f"{pair[k]:,}" for pair in summary["features"].values()) for k in (1, 0)]
    accuracy = f"test accuracy {summary['test_accuracy']:.2%}"
    return f"{arguments['data']}, {arguments['model']}, λ = {arguments['lam']:g}: {sizes[0]} → {sizes[1]}, {accuracy}"


def draw_sizes(axes, history):
    steps, curves = history.curves()
    collections = [row["step"] for row in history.of_kind("collection")]
    for name, sizes in curves.items():
        (line,) = axes.plot(steps, shown(sizes), linewidth=2, label=f"{name}: {sizes[0]:,} → {sizes[-1]:,}")
        marks = [row["features"][name][0] for row in history.of_kind("collection")]
        axes.plot(collections, shown(marks), "o", color="white", markeredgecolor=line.get_color(), markersize=3.5)
    axes.plot(
        [], [], "o", color="white", markeredgecolor="black", markersize=3.5, label=f"{len(collections)} collections"
    )
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.set_ylabel("living features")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)


def shown(sizes):
    return [max(FLOOR, size) for size in sizes]


def draw_loss(axes, history, words):
    losses = history.losses
    steps = range(1, len(losses) + 1)
    axes.plot(steps, losses, color="tab:gray", alpha=0.3, linewidth=0.6, label="batch")
    window = max(1, len(losses) // WINDOW)
    axes.plot(*smooth(losses, window), color="tab:blue", linewidth=1.8, label="training, smoothed")
    rows = history.of_kind("epoch")
    if rows:
        tested = [r["step"] for r in rows], [r["test_loss"] for r in rows]
        axes.plot(*tested, color="tab:orange", linewidth=1.4, label="test")
    axes.set_yscale("log")
    axes.set_ylabel(words)
    axes.set_xlabel("step")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, ncols=3)


def smooth(values, window):
    """(steps, means of ``window`` values that follow each other)"""
    cuts = range(0, len(values) - window + 1, window)
    return [cut + window / 2 for cut in cuts], [sum(values[cut : cut + window]) / window for cut in cuts]
