"""``--tensorboard``: scalars for TensorBoard, in OUT/tensorboard."""

import shutil

from .models import weight_count
from .refusal import require

FOLDER = "tensorboard"


def needed():
    """The class that writes events."""
    return require("torch.utils.tensorboard", "tensorboard", "--tensorboard", "pip install tensorboard").SummaryWriter


class Board:
    """Writes what the history has of each epoch, once it is over. writer: the class, see :func:`needed`.

    resumed: keep the events of the run's earlier part; those of an epoch that was not finished are superseded.
    """

    def __init__(self, writer, folder, trainer, resumed):
        if not resumed:
            shutil.rmtree(folder / FOLDER, ignore_errors=True)
        first = trainer.epochs_done * trainer.steps_per_epoch + 1
        self.writer = writer(folder / FOLDER, purge_step=first if resumed else None)

    def epoch(self, trainer):
        add, step, row = self.writer.add_scalar, trainer.step_count, trainer.history.rows[-1]
        losses = trainer.history.losses_of_epoch(trainer)
        for number, loss in enumerate(losses, step - len(losses) + 1):
            add("loss/train", loss, number)
        add("loss/test", row["test_loss"], step)
        add("accuracy/test", row["test_accuracy"], step)
        add("penalty", row["penalty"], step)
        add("parameters", weight_count(trainer.model), step)
        for name, (alive, _) in row["features"].items():
            add(f"features/{name}", alive, step)
        self.writer.flush()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.writer.close()
