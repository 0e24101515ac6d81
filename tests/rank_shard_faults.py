"""Ranks that share the parts of a model: what is refused, by all of them, and compiled code that has to let go."""

import torch
import torch.nn.functional as F
from rank_sharded import mesh, set_entry, setting_in_shards, shard, step_on, whole_state
from rank_training import Perceptron, made, rank
from torch.distributed.fsdp import fully_shard

import shrinknets_fast as sn


def refused_in_shards():
    """{case: what it says}, each with nothing changed."""
    said = {}

    def refuse(case, call):
        try:
            call()
            said[case] = "nothing"
        except sn.ShrinkError as error:
            said[case] = str(error)

    model, x, y, optimizer, gc = setting_in_shards()
    model.set_requires_gradient_sync(False)
    F.cross_entropy(model(x[:8]), y[:8]).backward()
    set_entry(model[0].theta.detach(), 3, 0.0)
    refuse("unreduced gradients", gc.collect)
    refuse("a state that is loaded into shards", lambda: sn.load_state_dict(model, model.state_dict()))
    refuse("filters added to shards", lambda: sn.add_filters(model, x[:4]))

    model, x, y = made(Perceptron)
    gc = sn.GarbageCollector(model, x[:4])
    shard(model)
    refuse("sharded after the collector", gc.step)

    model, x, y = made(Perceptron)
    fully_shard(model[0], mesh=mesh())
    refuse("only a layer is sharded", lambda: sn.GarbageCollector(model, x[:4]))

    model, x, y = made(Perceptron)
    fully_shard(model, mesh=mesh(), ignored_params={model[0].theta})
    refuse("a theta that is ignored", lambda: sn.GarbageCollector(model, x[:4]))

    from torch.distributed.tensor import Shard

    model, x, y = made(Perceptron)
    fully_shard(model, mesh=mesh(), shard_placement_fn=lambda p: Shard(1) if p.dim() > 1 else Shard(0))
    refuse("columns are sharded", lambda: sn.GarbageCollector(model, x[:4]))

    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    model, x, y = made(Perceptron)
    parallelize_module(model, mesh(), {"4": ColwiseParallel()})
    refuse("tensor parallelism", lambda: sn.GarbageCollector(model, x[:4]))

    model, x, y = made(Perceptron)
    copy = {name: p.detach().clone() for name, p in model.named_parameters()}
    shard(model)
    refuse("copies", lambda: sn.GarbageCollector(model, x[:4], follow=[copy]))

    model, x, y, optimizer, gc = setting_in_shards()
    model._get_fsdp_state()
    from shrinknets_fast.distributed import fsdp

    p = next(iter(fsdp.parameters(model).values()))
    p.size_of_tomorrow = 3
    refuse("a torch of tomorrow", lambda: sn.GarbageCollector(model, x[:4]))
    return said


def other_options_in_shards():
    model, x, y, optimizer, gc = setting_in_shards(every=1 + rank())
    for _ in range(2):
        step_on(model, x, y, optimizer)
        gc.step()


def one_met_in_shards():
    """One rank's optimizer has what cannot follow: both say so."""
    model, x, y, optimizer, gc = setting_in_shards()
    step_on(model, x, y, optimizer)
    if rank() == 0:
        optimizer.state[model[0]._parameters["weight"]]["odd"] = torch.zeros(5, 5)
    set_entry(model[0].theta.detach(), 3, 0.0)
    gc.collect()


def compiled_in_shards():
    """Compiled code refers to parameters by weak references: (removed, largest gradient difference from an eager model)"""
    found = []
    for compiled in (False, True):
        model, x, y, optimizer, gc = setting_in_shards()
        forward = torch.compile(model, backend="aot_eager") if compiled else model
        for turn in range(3):
            F.cross_entropy(forward(x[rank() : 32 : 2]), y[rank() : 32 : 2]).backward()
            set_entry(model[0].theta.detach(), turn, 0.0)
            optimizer.step()
            gc.collect()
            optimizer.zero_grad()
        found.append(whole_state(model, optimizer, [], []))
    gaps = [float((found[0]["model"][k] - v).abs().max()) for k, v in found[1]["model"].items()]
    return max(gaps), {k: tuple(v.shape) for k, v in found[1]["model"].items()}
