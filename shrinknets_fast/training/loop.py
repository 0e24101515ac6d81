"""The training loop: paper's recipe, one collector, no host-device synchronisation in a step that shows nothing."""

import math
import time

import torch
from torch.nn import functional as F

from .. import GarbageCollector, ProximalL1, features, load_state_dict, param_groups, penalty
from ..filters import thetas
from . import budget, state
from .amp import Amp
from .history import History
from .processes import Alone
from .refusal import Refusal


class Trainer:
    """Model, optimizer, collector and what they have been through. ``data`` and ``model`` are on the same device.

    model: fresh, of the original size. checkpoint: what ``state.of`` gave, or None.
    """

    def __init__(self, model, data, arguments, world=None, checkpoint=None):
        self.model, self.data, self.arguments, self.world = model, data, arguments, world or Alone()
        self.steps_per_epoch = math.ceil(len(data.labels) / arguments.batch_size)
        # of the original sizes
        self.history = History(model, self.steps_per_epoch * arguments.epochs, self.world.total)
        if checkpoint is not None:
            load_state_dict(model, checkpoint["model"])
        self.amp = Amp(arguments.amp, data.labels.device)
        self.forward = self.world.wrapped(model)
        if arguments.compile:
            # sizes are constants for each compilation, so that a resumed run computes with the same code
            self.forward = torch.compile(self.forward, dynamic=False)
        rates = {"lr": arguments.lr, "filter_lr": arguments.filter_lr, "weight_decay": arguments.weight_decay}
        self.optimizer = torch.optim.Adam(param_groups(model, **rates), fused=True)
        # Also built for --no-collect: its hook on the optimizer keeps the dead dead; only step() is left out.
        self.collector = GarbageCollector(
            self.forward,
            data.images[:2],
            optimizers=[self.optimizer],
            align=self.amp.align(arguments.align),
            every=arguments.every,
            seed=arguments.seed,
        )
        self.proximal = ProximalL1(self.optimizer, model, arguments.lam) if arguments.proximal else None
        self.budget = budget.make(model, data, arguments, self.steps_per_epoch * arguments.epochs)
        self.order = torch.Generator().manual_seed(arguments.seed)
        self.order_of_epoch = self.order.get_state()  # before it was drawn
        self.step_count = 0
        self.seconds = 0.0
        if checkpoint is not None:
            state.load(self, checkpoint)

    @property
    def epochs_done(self):
        return self.step_count // self.steps_per_epoch

    @property
    def epoch(self):
        """The epoch that the last step belongs to, from 1."""
        return math.ceil(self.step_count / self.steps_per_epoch)

    @property
    def is_between_epochs(self):
        return self.step_count % self.steps_per_epoch == 0

    def run(self, progress, interrupt, save, board=None):
        """All epochs, or until ``interrupt``. ``save()`` follows each epoch that went well, and ``--save-every`` steps.

        What is saved is the run as it goes on; what the end alone does, a collection of the last few dead, comes behind it.
        """
        begin = time.perf_counter() - self.seconds
        stopped = False
        while self.epochs_done < self.arguments.epochs and not stopped:
            for logits, loss, labels in self.rest_of_epoch():
                if progress.due():
                    progress.show(loss, logits, labels, self.model)
                    if self.world.size == 1:  # else all ranks look, at the end of the epoch
                        self.refuse_non_finite(loss.item())
                stopped = self.world.stop(interrupt, self.step_count, self.is_between_epochs)
                due = self.arguments.save_every and self.step_count % self.arguments.save_every == 0
                if (stopped or due) and not self.is_between_epochs:
                    self.seconds = time.perf_counter() - begin
                    self.history.flush()
                    self.refuse_non_finite(self.history.losses[-1])
                    save()
                if stopped:
                    break
            self.seconds = time.perf_counter() - begin
            self.history.end_epoch(self)
            self.refuse_non_finite(self.history.rows[-1]["loss"])
            progress.show_epoch(self.history.rows[-1])
            if self.is_between_epochs:  # else it is the row of an epoch that is not over, for the summary alone
                if board is not None:
                    board.epoch(self)
                save()
        if self.arguments.collect:
            self.note(self.collector.collect())  # step() leaves the last few per cent: not worth a pass each
        self.seconds = time.perf_counter() - begin

    def rest_of_epoch(self):
        """(logits, mean loss, labels) of this process's share of each step."""
        data, begun = self.data, self.step_count % self.steps_per_epoch
        self.order_of_epoch = self.order.get_state()
        order = torch.randperm(len(data.labels), generator=self.order).to(data.labels.device)
        for batch in order.split(self.arguments.batch_size)[begun:]:
            own = batch[self.world.rank :: self.world.size]
            labels = data.labels[own]
            logits, share = self.step(data.images[own], labels, len(batch))
            yield logits, share * (len(batch) / max(len(own), 1)), labels

    @property
    def lam(self):
        return self.budget.lam if self.budget else self.arguments.lam

    def step(self, images, labels, batch_size):
        """``batch_size``: of all processes together. Returns logits and the share of these images in the batch's mean loss."""
        with self.amp.forward():
            logits = self.forward(images)
        logits = self.amp.widened(logits)
        loss = F.cross_entropy(logits, labels, reduction="sum") / batch_size
        total = loss * self.world.size  # gradients are averaged over the processes
        if self.proximal:
            self.proximal.lam = self.lam
        elif self.lam:
            total = total + self.lam * penalty(self.model)
        self.optimizer.zero_grad()
        self.amp.scaler.scale(total).backward()
        self.amp.scaler.step(self.optimizer)
        self.amp.scaler.update()
        self.step_count += 1
        if self.budget:
            self.budget.step()
        if self.arguments.collect:
            self.note(self.collector.step())
        self.history.end_step(self, loss.detach())
        return logits.detach(), loss.detach()

    def note(self, collection):
        if collection is not None and any(collection.removed.values()):
            self.history.collected(self, collection)

    def refuse_non_finite(self, loss):
        """Raise before a checkpoint of a broken model could replace a good one."""
        broken = [name for name, theta in thetas(self.model).items() if not theta.isfinite().all()]
        if not math.isfinite(loss):
            broken.append("the loss")
        if broken:
            raise Refusal(f"{' and '.join(broken)} became nan or infinite with --lr {self.arguments.lr}")

    @torch.no_grad()
    def evaluate(self, chunk=1000):
        """(mean loss, accuracy) on the test images, in float32: of the network that is exported."""
        images, labels = self.data.test_images, self.data.test_labels
        self.model.eval()
        total = torch.zeros(2, dtype=torch.float64, device=labels.device)
        for x, y in zip(images.split(chunk), labels.split(chunk), strict=True):
            logits = self.model(x)
            total += torch.stack([F.cross_entropy(logits, y, reduction="sum"), (logits.argmax(1) == y).sum()])
        self.model.train()
        loss, accuracy = (total / len(labels)).tolist()
        return loss, accuracy

    def alive(self):
        """{layer: living features}"""
        return {name: alive for name, (alive, _) in features(self.model).items()}
