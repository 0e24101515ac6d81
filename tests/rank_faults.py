"""Two processes that differ, or meet what is refused: each case is called by both, and returns what test_distributed.py reads."""

import copy
import os
import time

import torch
from rank_training import (
    Perceptron,
    Residual,
    digits,
    made,
    rank,
    setting,
)
from ranks import Raised
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

import shrinknets_fast as sn


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
