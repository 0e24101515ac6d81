"""Networks and training runs that the cases of two processes share: rank_exact.py and rank_faults.py."""

import contextlib
import copy
import functools
import warnings

import torch
import torch.nn.functional as F
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel as DDP

import shrinknets_fast as sn

SIZE = 32  # of a batch, over all ranks


def digits(images):
    from sklearn.datasets import load_digits

    data = load_digits()
    x = torch.tensor(data.data, dtype=torch.float64) / 16
    return (x.view(-1, 1, 8, 8) if images else x), torch.tensor(data.target)


class Perceptron(nn.Sequential):
    def __init__(self, width=64):
        super().__init__(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))


class Unused(Perceptron):
    def __init__(self):
        super().__init__()
        self[1].register_parameter("extra", nn.Parameter(torch.ones(3)))


class Convolutional(nn.Sequential):
    def __init__(self, width=16):
        layers = [nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
        layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
        super().__init__(*layers, nn.Flatten(), nn.Linear(4 * width, 10))


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        layers = [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        self.branch = nn.Sequential(*layers, nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x):
        return F.relu(x + self.branch(x))


class Residual(nn.Module):
    def __init__(self, width=12):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width))
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        return self.head(self.blocks(F.relu(self.stem(x))).mean((2, 3)))


LAMBDA = {Perceptron: 3e-3, Unused: 3e-3, Convolutional: 5e-2, Residual: 2e-2}


@functools.cache
def first_made(kind, depth):
    torch.manual_seed(0)
    x, y = digits(images=kind in (Convolutional, Residual))
    model = kind().double()
    options = {"residual": "tied", "depth": depth} if kind is Residual else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sn.add_filters(model, x[:4], init="uniform", **options)
    return model, x, y


def made(kind, depth=True):
    model, x, y = first_made(kind, depth)
    return copy.deepcopy(model), x, y


def adam(model):
    return torch.optim.Adam(sn.param_groups(model, lr=1e-3, filter_lr=2e-2))


def rank():
    return distributed.get_rank()


def state_of(model, optimizer, losses, collections):
    moments = {}
    for name, p in model.named_parameters():
        for key, value in optimizer.state.get(p, {}).items():
            moments[f"{name}/{key}"] = torch.as_tensor(value).clone()
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return {"model": tensors, "moments": moments, "losses": losses, "removed": [c.removed for c in collections]}


def loop(
    model,
    forward,
    gc,
    optimizer,
    x,
    y,
    steps,
    parts=(0, 1),
    accumulate=1,
    unsynced=contextlib.nullcontext,
    at=None,
    between=None,
):
    """``parts``: (this rank, ranks). One optimizer step for ``accumulate`` batches. at(step, model): before gc.step();
    between(step, turn, model, gc): after each backward."""
    generator = torch.Generator().manual_seed(1)
    losses, collections = [], []
    for step in range(steps):
        for turn in range(accumulate):
            rows = torch.randint(len(x), (SIZE,), generator=generator)[parts[0] :: parts[1]]
            with contextlib.nullcontext() if turn == accumulate - 1 else unsynced():
                loss = F.cross_entropy(forward(x[rows]), y[rows])
                lam = next(
                    LAMBDA[kind] for kind in type(model).__mro__ if kind in LAMBDA
                )  # fully_shard derives a class
                ((loss + lam * sn.penalty(model)) / accumulate).backward()
            losses.append(loss.item())
            if between is not None:
                between(step, turn, model, gc)
        optimizer.step()
        optimizer.zero_grad()
        if at is not None:
            at(step, model)
        if (collection := gc.step()) is not None:
            collections.append(collection)
    return losses, collections


@functools.cache
def alone(kind, steps, make=None, depth=True, **options):
    """One process with the whole batches: what all ranks together have to be."""
    model, x, y = made(kind, depth)
    optimizer = (make or adam)(model)
    gc = sn.GarbageCollector(model, x[:4], optimizers=optimizer)
    return state_of(model, optimizer, *loop(model, model, gc, optimizer, x, y, steps, **options))


def together(
    kind,
    steps,
    hook=None,
    accumulate=1,
    given=True,
    at=None,
    between=None,
    min_dead=0.05,
    compare=True,
    compiled="",
    **options,
):
    """The same on two ranks, in one wrapper with ``options``. hook(wrapper); given: whether the collector gets the wrapper.

    Returns this rank's state; on rank 0, and if to ``compare``, it has that of one process as "alone".
    """
    model, x, y = made(kind)
    sn.FilteredSyncBatchNorm.convert_sync_batchnorm(model)
    optimizer = adam(model)
    gc = None if given else sn.GarbageCollector(model, x[:4], optimizers=optimizer)
    wrapper = DDP(torch.compile(model, backend="aot_eager") if compiled == "inside" else model, **options)
    forward = torch.compile(wrapper, backend="aot_eager") if compiled == "outside" else wrapper
    if hook is not None:
        hook(wrapper)
    pace = {"min_dead": min_dead, "max_graphs": 1000}  # compiled or not it collects when the one process does
    gc = gc or sn.GarbageCollector(forward, x[:4], optimizers=optimizer, **pace)
    reducer, hooks = wrapper.reducer, list(wrapper._comm_hooks)
    parts = rank(), distributed.get_world_size()
    found = loop(
        model, forward, gc, optimizer, x, y, steps, parts, accumulate, unsynced=wrapper.no_sync, at=at, between=between
    )
    state = state_of(model, optimizer, *found)
    state["rebuilt"] = wrapper.reducer is not reducer and wrapper._comm_hooks == hooks
    if rank() == 0 and compare:
        state["alone"] = alone(kind, steps, accumulate=accumulate, at=at, between=between)
    return state


def setting(kind=Perceptron, wrap=True, **options):
    """(model, wrapper, optimizer, collector, one training step)"""
    model, x, y = made(kind)
    optimizer = adam(model)
    wrapper = DDP(model)
    gc = sn.GarbageCollector(wrapper if wrap else model, x[:4], optimizers=optimizer, **options)
    turns = iter(range(1000))

    def train():
        rows = torch.arange(16) * 2 + rank() + 32 * next(turns)
        F.cross_entropy(wrapper(x[rows]), y[rows]).backward()
        optimizer.step()
        optimizer.zero_grad()

    return model, wrapper, optimizer, gc, train
