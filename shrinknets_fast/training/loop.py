"""The training loop: paper's recipe, one collector, no host-device synchronisation in a step that shows nothing."""

import math
import time

import torch
from torch.nn import functional as F

from .. import GarbageCollector, ProximalL1, features, param_groups, penalty
from ..filters import thetas
from . import budget
from .history import History
from .refusal import Refusal


class Trainer:
    """Model, optimizer, collector and what they have been through. ``data`` and ``model`` are on the same device."""

    def __init__(self, model, data, arguments):
        rates = {"lr": arguments.lr, "filter_lr": arguments.filter_lr, "weight_decay": arguments.weight_decay}
        self.model, self.data, self.arguments = model, data, arguments
        self.optimizer = torch.optim.Adam(param_groups(model, **rates), fused=True)
        # Also built for --no-collect: its hook on the optimizer keeps the dead dead; only step() is left out.
        self.collector = GarbageCollector(
            model,
            data.images[:2],
            optimizers=[self.optimizer],
            align=arguments.align,
            every=arguments.every,
            seed=arguments.seed,
        )
        self.proximal = ProximalL1(self.optimizer, model, arguments.lam) if arguments.proximal else None
        self.order = torch.Generator().manual_seed(arguments.seed)
        self.steps_per_epoch = math.ceil(len(data.labels) / arguments.batch_size)
        self.budget = budget.make(model, data, arguments, self.steps_per_epoch * arguments.epochs)
        self.history = History(model, self.steps_per_epoch * arguments.epochs)
        self.step_count = 0
        self.seconds = 0.0

    @property
    def epochs_done(self):
        return self.step_count // self.steps_per_epoch

    @property
    def epoch(self):
        """The epoch that the last step belongs to, from 1."""
        return math.ceil(self.step_count / self.steps_per_epoch)

    def run(self, progress, interrupt, save):
        """All epochs, or those begun before ``interrupt``; ``save()`` follows each epoch that went well."""
        begin = time.perf_counter()
        while self.epochs_done < self.arguments.epochs:
            self.one_epoch(progress, interrupt)
            self.seconds = time.perf_counter() - begin
            self.history.end_epoch(self)
            self.refuse_non_finite(self.history.rows[-1]["loss"])
            progress.show_epoch(self.history.rows[-1])
            save()
            if interrupt:
                break
        if self.arguments.collect:
            self.note(self.collector.collect())  # step() leaves the last few per cent: not worth a pass each
            save()
        self.seconds = time.perf_counter() - begin

    def one_epoch(self, progress, interrupt):
        data = self.data
        order = torch.randperm(len(data.labels), generator=self.order).to(data.labels.device)
        for batch in order.split(self.arguments.batch_size):
            labels = data.labels[batch]
            logits, loss = self.step(data.images[batch], labels)
            if progress.due():
                progress.show(loss, logits, labels, self.model)
                self.refuse_non_finite(loss.item())
            if interrupt:
                return

    @property
    def lam(self):
        return self.budget.lam if self.budget else self.arguments.lam

    def step(self, images, labels):
        logits = self.model(images)
        loss = total = F.cross_entropy(logits, labels)
        if self.proximal:
            self.proximal.lam = self.lam
        elif self.lam:
            total = loss + self.lam * penalty(self.model)
        self.optimizer.zero_grad()
        total.backward()
        self.optimizer.step()
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
        """(mean loss, accuracy) on the test images."""
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

    def state_dict(self):
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "collector": self.collector.state_dict(),
            "proximal": self.proximal.state_dict() if self.proximal else None,
            "budget": self.budget.state_dict() if self.budget else None,
            "order": self.order.get_state(),
            "epoch": self.epochs_done,
            "step": self.step_count,
            "image_shape": list(self.data.images.shape[1:]),
            "arguments": dict(vars(self.arguments)),
        }
