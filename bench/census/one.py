"""One model of the census, from its filters to the step after the collection: the fields of its row."""

import resource
import time

import torch

import shrinknets_fast as sn
from shrinknets_fast.coverage import all_dead, coverage
from shrinknets_fast.filters import thetas
from shrinknets_fast.graph.coverage import coverage_of

from ..zoo import weight_count
from . import exactness, libraries
from .prepare import prepared
from .words import line, portable

DEAD = 0.4
EXACT = 1e-9
LR = 1e-4
FIELDS = "status parameters filters coverage reasons placed output gradients state perturbed removed"
EMPTY = dict.fromkeys([*FIELDS.split(), "made_s", "collect_s", "peak_mb", "rival"])


def fresh(library, name):
    torch.manual_seed(0)
    return prepared(*libraries.make(library, name))


@torch.no_grad()
def kill(model, share=DEAD):
    """A random share of all thetas dies, of each filter the same share, never all of one."""
    generator = torch.Generator().manual_seed(0)
    for theta in thetas(model).values():
        count = min(round(share * theta.numel()), theta.numel() - 1)
        theta[torch.randperm(theta.numel(), generator=generator)[:count]] = 0.0


def warm_up():
    """What torch imports at the first trace is no model's time."""
    model, x = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1)), torch.randn(2, 2)
    sn.GarbageCollector(sn.add_filters(model, x), x, optimizers=torch.optim.Adam(model.parameters()))


def measure(library, name):
    """The fields of a row; "status" says how far it came: see the page."""
    row = dict(EMPTY)
    try:
        row["status"] = follow(library, name, row)
    except sn.ShrinkError as error:
        row["status"] = f"refused: {line(error)}"
    except Exception as error:
        row["status"] = f"crashed: {line(error)}"
    row["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return row


def follow(library, name, row):
    """Fills ``row`` in as it goes; returns the status."""
    model, args, kwargs = fresh(library, name)
    row["parameters"] = weight_count(model)
    with torch.no_grad():
        plain = exactness.forward(model, args, kwargs, False)
    start = time.process_time()
    sn.add_filters(model, args, example_kwargs=kwargs, residual="tied")
    row["made_s"] = time.process_time() - start
    row["filters"] = len(sn.features(model))
    if not row["filters"]:
        note(row, coverage(model, args, example_kwargs=kwargs))
        row["removed"] = 0.0
        return "nothing to remove"
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    places = {name: positions(p) for name, p in model.named_parameters()}
    start = time.process_time()
    gc = sn.GarbageCollector(
        model, args, example_kwargs=kwargs, optimizers=optimizer, follow=[places], follow_dead="drop"
    )
    row["made_s"] += time.process_time() - start
    note(row, coverage_of(model, gc.reading.network, all_dead(model)))
    with torch.no_grad():
        filtered = exactness.forward(model, args, kwargs, False)
    row["placed"] = max((exactness.distance(a, b) for a, b in zip(filtered, plain, strict=True)), default=0.0)
    kill(model)
    exactness.step(model, optimizer, args, kwargs)
    state = exactness.Snapshot(model, optimizer)
    masked = exactness.step(model, optimizer, args, kwargs)
    state.restore()
    moved = exactness.perturb(model, args, kwargs)
    shaken = exactness.step(model, optimizer, *moved)
    state.restore()
    optimizer.zero_grad()
    start = time.process_time()
    collection = gc.collect()
    row["collect_s"] = time.process_time() - start
    row["removed"] = 1 - weight_count(model) / row["parameters"]
    if not collection.removed:
        return "nothing to remove"
    found = exactness.distances(exactness.step(model, optimizer, args, kwargs), masked, places)
    row |= found
    row["perturbed"] = max(exactness.distances(shaken, masked).values())
    return judged(found, row["perturbed"], row["placed"])


def judged(found, perturbed, placed):
    """exact | exact (amplifies rounding), where a change by one unit in the last place moves the masked model as far | wrong"""
    worst = max(*found.values(), placed)
    if worst <= EXACT:
        return "exact"
    return "exact (amplifies rounding)" if worst <= 10 * perturbed < 1e-2 else "wrong"


def positions(parameter):
    """Where each entry is: it shrinks with its parameter as an average of the weights would."""
    return torch.arange(parameter.numel(), dtype=torch.float64).view(parameter.shape)


def note(row, covered):
    row["coverage"], row["reasons"] = covered.share, [portable(reason) for reason in covered.first_reasons(3)]
