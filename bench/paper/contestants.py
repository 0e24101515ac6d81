"""Who trains: ours, ours without collection, the authors' way, and a plain network that has the final size from the start."""

import time
from functools import partial

import torch
from torch import nn

import shrinknets_fast as sn

from ..models import swapped, unfused, xavier
from ..registry import OURS
from ..rivals import collect_by_index_select
from ..training_step import Step, adam, peak_bytes, unfused_penalty

MIN_DEAD = 0.05  # of the features, as in the collector's default
LOOK = 20  # steps between two looks of the authors' way; they themselves look once per epoch


def nothing(k):
    pass


class Contestant:
    """A model in training; ``after_step(k)`` is its collection, ``seconds`` the time all its steps took."""

    def __init__(self, name, role, model, optimizer, penalty=None, after_step=nothing):
        self.name, self.role, self.model, self.optimizer = name, role, model, optimizer
        self.penalty, self.after_step = penalty, after_step
        self.steps, self.seconds, self.curve, self.accuracies = 0, 0.0, [], []

    def train(self, batches):
        """Steps over ``batches``, timed as a whole."""
        step, device = Step(self.model, batches, self.optimizer, self.penalty), batches[0][0].device
        synchronise(device)
        start = time.perf_counter()
        for k in range(len(batches)):
            step(k)
            self.steps += 1
            self.after_step(self.steps)
        synchronise(device)
        spent = time.perf_counter() - start
        self.seconds += spent
        self.note(spent / len(batches), batches[0])

    def note(self, seconds, batch):
        """A point of the chart: [step, milliseconds per step, peak bytes of a step, features]."""
        step = Step(self.model, [batch], self.optimizer, self.penalty)
        peak = peak_bytes(step, batch[0].device)  # leaves the weights as they are
        self.curve.append([self.steps, 1e3 * seconds, peak, self.features()])

    def features(self):
        """Of all layers but the output."""
        layers = [m for m in self.model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
        return [m.weight.shape[0] for m in layers][:-1]

    @torch.no_grad()
    def evaluate(self, images, labels):
        self.model.eval()
        right = sum(
            (self.model(x).argmax(1) == y).sum() for x, y in zip(images.split(1000), labels.split(1000), strict=True)
        )
        self.model.train()
        self.accuracies.append((self.seconds, float(right) / len(labels)))

    @property
    def best(self):
        return max(accuracy for _, accuracy in self.accuracies)

    def seconds_to(self, target):
        return next((seconds for seconds, accuracy in self.accuracies if accuracy >= target), None)


def synchronise(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def rates(lr, filter_lr, model):
    """Parameter groups of any of the networks here."""
    named = list(model.named_parameters())
    filters = [p for name, p in named if name.rpartition(".")[2] == "theta"]
    weights = [p for name, p in named if name.rpartition(".")[2] != "theta"]
    return [{"params": weights, "lr": lr}, {"params": filters, "lr": filter_lr}]


def shrinking(make, example, lam, lr, filter_lr):
    """The three that start large. make(): the filtered network, the same each time."""
    penalty = lambda model: lam * sn.penalty(model)  # noqa: E731
    for name, role, collects in ((OURS, "ours", True), (f"{OURS}, no collection", "rival", False)):
        model = make()
        optimizer = adam(rates(lr, filter_lr, model))
        gc = sn.GarbageCollector(model, example, optimizers=optimizer, min_dead=MIN_DEAD)
        after_step = partial(collect_and_trim, gc) if collects else nothing
        yield Contestant(name, role, model, optimizer, penalty, after_step)
    model = swapped(make(), unfused)
    optimizer = adam(rates(lr, filter_lr, model))

    def collect(k):
        if k % LOOK == 0 and any(float((t <= 0).float().mean()) >= MIN_DEAD for t in thetas(model)):
            collect_by_index_select(model, optimizer)

    yield Contestant("unfused, index_select", "rival", model, optimizer, lambda m: lam * unfused_penalty(m), collect)


def collect_and_trim(collector, _):
    """The collector's look after a step; what a collection left unused is given back."""
    if collector.step():
        collector.trim()


def thetas(model):
    return [p for name, p in model.named_parameters() if name.rpartition(".")[2] == "theta"]


def static(model, lr):
    """The ideal: a plain network of the size that ours ended with, never larger."""
    plain = xavier(sn.fold_filters(model))
    return Contestant("static, final size", "plain", plain, adam(plain.parameters(), lr=lr))
