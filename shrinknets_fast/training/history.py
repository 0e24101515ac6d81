"""What happened during training: rows for history.jsonl, and the curves of the picture."""

import torch

from .. import features, penalty
from ..filters import named_filters

SAMPLES = 500  # of the sizes over a run: more than the picture has pixels for


class History:
    """Collects on the device; values reach the host at the end of an epoch and with a checkpoint: no step waits for them.

    total(tensor): its sum over all processes, of each of which a loss is a share.
    """

    def __init__(self, model, steps, total):
        self.total = total
        self.filters = named_filters(model)
        self.start = {name: total for name, (_, total) in features(model).items()}
        self.rows, self.losses = [], []
        self.size_steps, self.sizes = [], []
        self.stride = max(1, steps // SAMPLES)
        self._losses, self._sizes = [], []
        self._sample(0)

    def end_step(self, trainer, loss):
        self._losses.append(loss)
        if trainer.step_count % self.stride == 0:
            self._sample(trainer.step_count)

    def _sample(self, step):
        self.size_steps.append(step)
        self._sizes.append(torch.stack([layer.alive.sum() for layer in self.filters.values()]))

    def flush(self):
        """All processes call it at the same steps."""
        if self._losses:
            self.losses += self.total(torch.stack(self._losses)).tolist()
            self._losses.clear()

    def losses_of_epoch(self, trainer):
        return self.losses[(trainer.epoch - 1) * trainer.steps_per_epoch :]

    def end_epoch(self, trainer):
        self._sample(trainer.step_count)
        self.flush()
        new = self.losses_of_epoch(trainer)
        test_loss, test_accuracy = trainer.evaluate()
        row = {
            "kind": "epoch",
            "epoch": trainer.epoch,
            "step": trainer.step_count,
            "loss": sum(new) / len(new),
            "penalty": penalty(trainer.model).item(),
            "test_loss": test_loss,
            "test_accuracy": test_accuracy,
            "features": self.features(trainer),
            "seconds": round(trainer.seconds, 3),
        }
        self.rows.append(row)

    def collected(self, trainer, collection):
        row = {
            "kind": "collection",
            "epoch": trainer.epoch,
            "step": trainer.step_count,
            "removed": dict(collection.removed),
            "features": self.features(trainer),
            "bytes_moved": collection.bytes_moved,
            "bytes_freed": collection.bytes_freed,
            "milliseconds": collection.milliseconds,
        }
        self.rows.append(row)

    def features(self, trainer):
        """{layer: [living features, features at the start]}"""
        return {name: [alive, self.start[name]] for name, alive in trainer.alive().items()}

    def curves(self):
        """(steps, {layer: living features at each}), the end included"""
        sizes = torch.stack(self._sizes).cpu()
        return self.size_steps, dict(zip(self.filters, sizes.T.tolist(), strict=True))

    def of_kind(self, kind):
        return [row for row in self.rows if row["kind"] == kind]

    def state_dict(self):
        self.flush()
        sizes = torch.stack(self._sizes).cpu()
        losses = torch.tensor(self.losses, dtype=torch.float64)  # in float64 as the host has them
        rows = [dict(row) for row in self.rows]
        return {"rows": rows, "losses": losses, "size_steps": list(self.size_steps), "sizes": sizes}

    def load_state_dict(self, state):
        self.rows, self.losses = list(state["rows"]), state["losses"].tolist()
        device = self._sizes[0].device
        self.size_steps, self._sizes = list(state["size_steps"]), list(state["sizes"].to(device))
