"""Training to the same accuracy, on real data: wall-clock, peak memory, and both over training.

The paper's MLP on MNIST and LeNet-5 on FashionMNIST. The accuracy is the best that every contestant reaches; all train for the
same number of epochs, in turns of a part of an epoch, so that the machine's drift hits all. Theta's own learning rate is an
axis: under Adam it decides how fast a network shrinks.
"""

import copy
import itertools
import math
import random
from dataclasses import dataclass

import torch

from shrinknets_fast.training.data import load
from shrinknets_fast.training.refusal import Refusal

from ..models import lenet5, mlp, xavier
from ..paper.contestants import shrinking, static
from ..registry import Case, Unavailable, family

PARTS = 4  # of an epoch: evaluations and points of the chart


@dataclass(frozen=True)
class Setting:
    name: str
    data: str
    make: object
    epochs: int
    batch: int
    lams: tuple
    filter_lrs: tuple
    lr: float = 1e-3


DIGITS = Setting("MLP 64-1000-10, digits", "digits", lambda: mlp(1000, 1, 64), 12, 32, (5e-3,), (1e-2,))
PAPER = [
    Setting("MLP 784-10000-10, MNIST", "mnist", lambda: mlp(10000), 5, 256, (1e-2, 1e-3), (1e-3, 1e-2)),
    Setting("LeNet-5 50-50-5000, FashionMNIST", "fashion", lenet5, 3, 256, (1e-3,), (1e-3, 1e-2)),
]


@family
def end_to_end(options):
    for setting in [DIGITS] if options.quick else PAPER:
        for lam, filter_lr in itertools.product(setting.lams, setting.filter_lrs):
            name = f"{setting.name}, lambda {lam:g}, filter_lr {filter_lr:g}"
            race = lambda s=setting, a=lam, f=filter_lr: run(s, a, f, options)  # noqa: E731
            yield Case(name, measure=race, fields={"lam": lam, "filter_lr": filter_lr})


def run(setting, lam, filter_lr, options):
    """{contestant: fields of its row}"""
    if setting.data != "digits" and not options.data:
        raise Unavailable("it needs --data ROOT, with torchvision's data sets unpacked")
    try:
        data = load(setting.data, options.data).to(options.device)
    except Refusal as refusal:
        raise Unavailable(str(refusal)) from refusal
    if options.examples:
        data = data._replace(images=data.images[: options.examples], labels=data.labels[: options.examples])
    epochs = options.epochs or setting.epochs
    start = xavier(setting.make()).to(options.device)
    found = list(shrinking(lambda: copy.deepcopy(start), data.images[:2], lam, setting.lr, filter_lr))
    train(found, data, setting.batch, epochs, options.seed)
    last = static(found[0].model, setting.lr)
    train([last], data, setting.batch, epochs, options.seed)
    found.append(last)
    target = math.floor(1000 * min(c.best for c in found)) / 1000
    more = {"target": target, "epochs": epochs, "examples": len(data.labels)}
    return {c.name: {**fields(c, target), **more} for c in found}


def train(contestants, data, batch, epochs, seed):
    order = torch.Generator().manual_seed(seed)
    shuffle = random.Random(seed)
    for _ in range(epochs):
        indices = torch.randperm(len(data.labels), generator=order).to(data.labels.device).split(batch)
        for part in parts(indices):
            batches = [(data.images[i], data.labels[i]) for i in part]
            for contestant in shuffle.sample(contestants, len(contestants)):
                contestant.train(batches)
                contestant.evaluate(data.test_images, data.test_labels)


def parts(indices):
    size = math.ceil(len(indices) / PARTS)
    return [indices[k : k + size] for k in range(0, len(indices), size)]


def fields(contestant, target):
    """``median_ms``: until ``target`` was reached; one run, so there is no spread to show."""
    seconds = contestant.seconds_to(target)
    return {
        "role": contestant.role,
        "match": None,
        "median_ms": 1e3 * seconds,
        "runs": 1,
        "accuracy": contestant.accuracies[-1][1],
        "best_accuracy": contestant.best,
        "total_s": contestant.seconds,
        "peak_bytes": max(point[2] for point in contestant.curve),
        "last_step_ms": contestant.curve[-1][1],
        "features": contestant.features(),
        "curve": contestant.curve,
    }
