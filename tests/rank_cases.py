"""What two processes do together, for test_distributed.py: each function is called by both, and returns what is looked at."""

import contextlib
import copy
import functools
import os
import time
import warnings

import torch
import torch.nn.functional as F
from ranks import Raised
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
def first_made(kind):
    torch.manual_seed(0)
    x, y = digits(images=kind in (Convolutional, Residual))
    model = kind().double()
    options = {"residual": "tied", "depth": True} if kind is Residual else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sn.add_filters(model, x[:4], init="uniform", **options)
    return model, x, y


def made(kind):
    model, x, y = first_made(kind)
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
                lam = LAMBDA[type(model)]
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
def alone(kind, steps, **options):
    """One process with the whole batches: what all ranks together have to be."""
    model, x, y = made(kind)
    optimizer = adam(model)
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
    gc = gc or sn.GarbageCollector(forward, x[:4], optimizers=optimizer, min_dead=min_dead)
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


# what stays exact


def perceptron():
    return together(Perceptron, 30)


def convolutional():
    return together(Convolutional, 40)


def close_a_branch(step, model):
    if step == 15:
        with torch.no_grad():
            model.blocks[0].branch[1].theta.zero_()


def residual():
    return together(Residual, 30, at=close_a_branch)


def found():
    return together(Perceptron, 30, given=False)


def bucket_view():
    return together(Perceptron, 40, gradient_as_bucket_view=True)


def static_graph():
    return together(Perceptron, 30, static_graph=True)


def unused_parameters():
    return together(Unused, 30, find_unused_parameters=True)


def accumulated():
    return together(Perceptron, 40, accumulate=2)


def accumulated_in_views():
    return together(Perceptron, 40, accumulate=2, gradient_as_bucket_view=True)


def collect_between(step, turn, model, gc):
    """Features die while gradients of half a step wait."""
    if turn == 0 and step % 10 == 5:
        with torch.no_grad():
            for theta in (model[0].theta, model[2].theta):
                theta[step % 7] = 0
        gc.collect()


def pending():
    return together(Perceptron, 40, accumulate=2, between=collect_between)


def pending_in_views():
    return together(Perceptron, 40, accumulate=2, between=collect_between, gradient_as_bucket_view=True)


def small_buckets():
    return together(Perceptron, 40, bucket_cap_mb=0.005)


def communication_hook():
    """It is called in every backward."""
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

    called, expected = set(), []

    def hook(state, bucket):
        called.add(len(expected))
        return default_hooks.allreduce_hook(state, bucket)

    def note(step, turn, model, gc):
        expected.append(step)

    found = together(Perceptron, 40, hook=lambda w: w.register_comm_hook(None, hook), between=note, compare=False)
    assert called == set(expected) == set(range(40))
    if rank() == 0:
        found["alone"] = alone(Perceptron, 40)
    return found


def builtin_hook():
    """Every gradient has been through half precision, at the end as at the beginning: (share of such entries, collections)"""
    model, wrapper, optimizer, gc, train = setting()
    wrapper._register_builtin_comm_hook(distributed.BuiltinCommHookType.FP16_COMPRESS)
    shares, removed = [], []
    for _ in range(3):
        with torch.no_grad():
            model[0].theta[:5] = 0
        removed.append(sum(gc.collect().removed.values()))
        x = digits(False)[0]
        wrapper(x[rank() : 20 : 2]).square().mean().backward()
        gradients = torch.cat([p.grad.flatten() for p in model.parameters()])
        shares.append(float((gradients.half().double() == gradients).double().mean()))
        optimizer.zero_grad()
    return shares, removed


def trim_on_the_first(step, turn, model, gc):
    """Before it writes a checkpoint, say."""
    if rank() == 0 and step % 10 == 9:
        gc.trim(waste=0)


def trimmed_on_one_rank():
    return together(Perceptron, 40, between=trim_on_the_first, find_unused_parameters=True)


def compiled():
    return together(Perceptron, 40, compiled="outside")


def compiled_inside():
    return together(Perceptron, 40, compiled="inside")


def uneven_norm():
    """A synchronised norm whose ranks have other numbers of rows: (output, gradients, statistics), and those of one process."""
    torch.manual_seed(0)
    norm = sn.FilteredSyncBatchNorm(3, dtype=torch.float64)
    one = sn.FilteredBatchNorm2d(3, dtype=torch.float64)
    one.load_state_dict(norm.state_dict())
    x, weights = torch.randn(7, 3, 4, 2, dtype=torch.float64), torch.randn(7, 3, 4, 2, dtype=torch.float64)
    rows = slice(0, 5) if rank() == 0 else slice(5, 7)
    own, whole = x[rows].clone().requires_grad_(), x.clone().requires_grad_()
    found = []
    for layer, inputs, w in ((norm, own, weights[rows]), (one, whole, weights)):
        out = layer(inputs)
        (out * w).sum().backward()
        gradients = [p.grad.clone() for p in layer.parameters()]
        if layer is norm:
            for g in gradients:
                distributed.all_reduce(g)
        keep = slice(None) if layer is norm else rows
        layer.eval()
        later = layer(inputs.detach())[keep]
        found.append([out.detach()[keep], inputs.grad[keep], *gradients, *layer.buffers(), later.detach()])
    return found


def power_sgd():
    """(what ``together`` returns, [(iterations, buckets with an error kept) before and after a collection], and at the end)"""
    from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook as power

    state = power.PowerSGDState(None, matrix_approximation_rank=2, start_powerSGD_iter=4, min_compression_rate=1)
    seen = []

    def look(step, turn, model, gc):
        if step == 20:
            seen.append((state.iter, len(state.error_dict)))
            with torch.no_grad():
                model[0].theta[:8] = 0
            gc.collect()
            seen.append((state.iter, len(state.error_dict)))

    hook = functools.partial(DDP.register_comm_hook, state=state, hook=power.powerSGD_hook)
    found = together(Perceptron, 40, hook=hook, between=look, min_dead=1.0, compare=False)
    return found, seen, (state.iter, len(state.error_dict))


# what is refused, on all ranks


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


def refusal(call, model, optimizer=None):
    """(the error's words, seconds until it came, whether nothing changed)"""
    state = [model] if optimizer is None else [model, optimizer]
    before = copy.deepcopy([thing.state_dict() for thing in state])
    start = time.perf_counter()
    try:
        call()
    except Exception as error:
        raised = Raised(error)
    else:
        return "nothing was raised"
    seconds = time.perf_counter() - start
    after = [thing.state_dict() for thing in state]
    return raised.kind, raised.text, seconds, same(before, after)


def same(before, after):
    if isinstance(before, torch.Tensor):
        return before.shape == after.shape and torch.equal(before.nan_to_num(), after.nan_to_num())
    if isinstance(before, dict):
        return before.keys() == after.keys() and all(same(before[key], after[key]) for key in before)
    if isinstance(before, (list, tuple)):
        return len(before) == len(after) and all(same(*pair) for pair in zip(before, after, strict=True))
    return before == after


def differing(change, call="step", **options):
    """What the next call says when ``change(model, rank)`` was done on each rank, and that all goes on once it is mended."""
    model, wrapper, optimizer, gc, train = setting(**options)
    for _ in range(3):
        train()
        gc.step()
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        change(model, rank())
    found = refusal(getattr(gc, call), model, optimizer)
    model.load_state_dict(before)
    gc.step()
    with torch.no_grad():
        model[0].theta[:20] = 0
    train()
    gone = gc.collect().removed
    train()
    return found, gone


def drift(model, rank):
    model[2].theta[3] += 1e-2 * rank


def drift_of_one_bit(model, rank):
    if rank:
        model[2].theta[3] = torch.nextafter(model[2].theta[3], torch.tensor(2.0, dtype=torch.float64))


def more_dead(model, rank):
    model[0].theta[: 10 * rank] = 0


def others_dead(model, rank):
    model[0].theta[10 * rank : 10 * rank + 10] = 0


def one_theta_drifts():
    return differing(drift)


def one_bit_drifts():
    return differing(drift_of_one_bit)


def one_theta_drifts_at_collect():
    return differing(drift, call="collect")


def one_rank_kills_more():
    return differing(more_dead)


def one_rank_kills_more_at_collect():
    """And the random share that leaves is drawn on both as before."""
    return differing(more_dead, call="collect", removal=0.5)


def each_rank_kills_others():
    return differing(others_dead)


def each_rank_kills_others_at_collect():
    return differing(others_dead, call="collect")


def a_rank_of_whom_something_is_not_followed():
    """One rank refuses, in the middle of a collection in which a branch leaves: it comes back on both."""
    model, wrapper, optimizer, gc, train = setting(kind=Residual)
    with torch.no_grad():
        model.blocks[0].branch[1].theta.zero_()
        model.stem[1].theta[:4] = 0
    if rank():
        optimizer.state[model.stem[1].theta]["odd"] = torch.zeros(5, 5)
    found = refusal(gc.collect, model)
    optimizer.state.clear()
    return found, gc.collect().branches


def a_rank_with_another_theta():
    model, wrapper, optimizer, gc, train = setting()
    kept = model[0].theta
    if rank():
        model[0].theta = nn.Parameter(kept.detach().clone())
    found = refusal(gc.step, model, optimizer)
    model[0].theta = kept
    return found, gc.step()


def other_options():
    model, wrapper, optimizer, gc, train = setting(every=1 + rank())
    first = refusal(gc.step, model, optimizer)
    again = refusal(gc.step, model, optimizer)
    assert again[:2] == first[:2]  # whoever goes on hears of it again
    return first


def other_seeds():
    model, wrapper, optimizer, gc, train = setting(removal=0.5, seed=rank())
    return refusal(gc.step, model, optimizer)


def other_steps():
    model, wrapper, optimizer, gc, train = setting()
    gc.step()
    state = gc.state_dict()
    gc.load_state_dict({**state, "steps": state["steps"] + 5 * rank()})
    return refusal(gc.step, model, optimizer)


def other_calls():
    model, wrapper, optimizer, gc, train = setting()
    gc.step()
    return refusal(gc.collect if rank() else gc.step, model, optimizer)


def other_copies():
    """An average on one rank only, for which features wait."""
    model, x, y = made(Perceptron)
    wrapper = DDP(model)
    gc = sn.GarbageCollector(wrapper, x[:4], follow=() if rank() else copy.deepcopy(model))
    return refusal(gc.step, model)


def not_finite():
    model, wrapper, optimizer, gc, train = setting()
    with torch.no_grad():
        model[0].theta[3] = torch.nan
    return refusal(gc.step, model)


def made_for(**options):
    """What making a collector says of a wrapper made so."""
    model, x, y = made(Perceptron)
    wrapper = DDP(model, **options)
    return refusal(lambda: sn.GarbageCollector(wrapper, x[:4]), model)


def zero_redundancy():
    from torch.distributed.optim import ZeroRedundancyOptimizer

    model, x, y = made(Perceptron)
    optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.Adam)
    wrapper = DDP(model)
    return refusal(lambda: sn.GarbageCollector(wrapper, x[:4], optimizers=optimizer), model)


def inside_join():
    model, wrapper, optimizer, gc, train = setting()
    with wrapper.join():
        train()
        found = refusal(gc.step, model, optimizer)
    return found


def late_filters():
    model, x = Perceptron().double(), digits(False)[0]
    wrapper = DDP(model)
    sn.add_filters(model, x[:4])
    return refusal(lambda: sn.GarbageCollector(wrapper, x[:4]), model)


def late_filters_of_the_inner_module():
    """The wrapper is found at the first step."""
    model, x = Perceptron().double(), digits(False)[0]
    wrapper = DDP(model)
    sn.add_filters(model, x[:4])
    gc = sn.GarbageCollector(model, x[:4])
    return refusal(gc.step, model), wrapper.module is model


def another_model():
    model, x, y = made(Perceptron)
    wrapper = DDP(model)
    wrapper.module = copy.deepcopy(model)
    return refusal(lambda: sn.GarbageCollector(wrapper, x[:4]), model)


def ignored_theta():
    model, x, y = made(Perceptron)
    model._ddp_params_and_buffers_to_ignore = ["0.theta"]
    wrapper = DDP(model)
    return refusal(lambda: sn.GarbageCollector(wrapper, x[:4]), model)


def hook_with_memory():
    model, x, y = made(Perceptron)
    wrapper, state = DDP(model), torch.nn.Module()
    state.errors = {0: torch.zeros(9)}
    wrapper.register_comm_hook(state, lambda state, bucket: None)
    return refusal(lambda: sn.GarbageCollector(wrapper, x[:4]), model)


def frozen_objects():
    import gc as objects

    model, wrapper, optimizer, gc, train = setting(wrap=False)
    objects.freeze()
    try:
        found = refusal(gc.step, model, optimizer)
    finally:
        objects.unfreeze()
    gc.step()
    return found


def wrapped_anew():
    """A wrapper made after the first one is gone, of which the collector knows nothing, and that nobody kept the first one."""
    import gc as objects
    import weakref

    model, wrapper, optimizer, gc, train = setting(wrap=False)
    known, x = weakref.ref(wrapper), digits(False)[0]
    gc.step()
    del wrapper, train
    objects.collect()
    new = DDP(model, find_unused_parameters=True)
    for _ in range(2):
        with torch.no_grad():
            model[0].theta[:5] = 0
        gc.collect()
        new.zero_grad()
        new(x[rank() : 20 : 2]).square().mean().backward()
    averaged = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model(x[:20]).square().mean().backward()
    return known() is None, averaged, [p.grad.clone() for p in model.parameters()]


def loaded_in_a_wrapper():
    """A shrunk checkpoint of a wrapper into a wrapper in use: gradients are averaged."""
    model, wrapper, optimizer, gc, train = setting()
    with torch.no_grad():
        model[0].theta[:9] = 0
    gc.collect()
    fresh = DDP(made(Perceptron)[0], find_unused_parameters=True)
    x = digits(False)[0]
    fresh(x[:4]).sum().backward()
    sn.load_state_dict(fresh, wrapper.state_dict())
    found = []
    for network, rows in ((fresh, slice(rank(), 20, 2)), (model, slice(0, 20))):
        network.zero_grad()
        network(x[rows]).square().mean().backward()
        found.append([p.grad.clone() for p in network.parameters()])
    return found


# after which the two cannot go on


def a_rank_dies():
    model, wrapper, optimizer, gc, train = setting()
    for _ in range(3):
        train()
        gc.step()
    if rank():
        os._exit(3)
    return refusal(gc.step, model, optimizer)


def only_one_rank_steps():
    """Rank 0 waits for a comparison, rank 1 for a gradient: the process group notices that the two differ."""
    model, wrapper, optimizer, gc, train = setting()
    train()
    gc.step()

    def go_on():
        for _ in range(3):
            train()
            if not rank():
                gc.step()

    return refusal(go_on, model)


def a_rank_meets_an_error_of_its_own():
    """Not one of a collection, so the other rank hears of it as of a rank that has died."""
    model, wrapper, optimizer, gc, train = setting()
    gc.step()
    if rank():
        raise RuntimeError("no more data")
    return refusal(gc.step, model)
