"""What a run leaves in its folder while it goes on, and what at its end."""

import json

import torch

from . import picture, plain, report, state
from .files import replace, replace_text
from .latency import latency

CHECKPOINT = "last.pt"
OF_THE_END = ("summary.json", "plain.pt2", "history.png")


class Saver:
    """Writes into ``folder``, which only the rank that writes has; it is None on the others."""

    def __init__(self, folder):
        self.folder = folder
        # of an earlier run: they would stand beside a checkpoint that is not theirs
        self.stale: tuple[str, ...] = OF_THE_END

    def checkpoint(self, trainer):
        """All ranks call it."""
        if self.folder is not None:
            trainer.collector.trim(waste=0)  # a file holds whole storages
        found = state.of(trainer)
        if self.folder is None:
            return
        for name in self.stale:
            (self.folder / name).unlink(missing_ok=True)
        self.stale = ()
        replace(self.folder / CHECKPOINT, lambda file: torch.save(found, file))
        self.history(trainer)

    def history(self, trainer):
        rows = "".join(json.dumps(row) + "\n" for row in trainer.history.rows)
        replace_text(self.folder / "history.jsonl", rows)

    def end(self, trainer, figure_class, parameters_before, interrupted):
        """What only the end of training knows; the summary last, so that it says that everything is there."""
        self.history(trainer)
        images = trainer.data.test_images
        network = plain.export(trainer.model, images, self.folder / "plain.pt2")
        difference = plain.max_abs_diff(trainer.model, self.folder / "plain.pt2", images)
        summary = report.summarise(trainer, network, difference, parameters_before, interrupted)
        summary["latency_ms"] = latency(trainer.arguments, images.shape[1:], network, images.device)
        title = picture.title(summary)
        picture.draw(figure_class, trainer.history, title, "cross entropy", self.folder / "history.png")
        replace_text(self.folder / "summary.json", json.dumps(summary, indent=2) + "\n")
        return summary
