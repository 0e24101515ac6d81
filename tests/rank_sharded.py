"""Two processes share the parts of one model (fully_shard): each case is called by both; test_sharded.py compares with one process."""

import warnings

import torch
import torch.nn.functional as F
from rank_training import Convolutional, Perceptron, Residual, adam, alone, loop, made, rank, state_of
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

import shrinknets_fast as sn


def mesh():
    return init_device_mesh("cpu", (distributed.get_world_size(),))


def layers(model):
    """What is sharded on its own, as people do with a transformer's blocks."""
    return [child for child in model if any(True for _ in child.parameters())] if isinstance(model, nn.Sequential) else []


def shard(model, each=True, **options):
    for layer in (layers(model) or list(model.children())) if each else ():
        fully_shard(layer, mesh=mesh(), **options)
    return fully_shard(model, mesh=mesh(), **options)


def wholly(value):
    return value.full_tensor() if isinstance(value, DTensor) else value


def whole_state(model, optimizer, losses, collections):
    """As state_of(), with the parts of all ranks."""
    for unit in model.modules():
        if hasattr(unit, "reshard"):
            unit.reshard()
    found = state_of(model, optimizer, losses, collections)
    for kind in ("model", "moments"):
        found[kind] = {name: wholly(value).detach() for name, value in found[kind].items()}
    return found


def sharded(kind, steps, make=adam, each=True, accumulate=1, at=None, between=None, shard_options=None, **options):
    """This rank's view of a run on all of them; on rank 0 with that of one process as "alone"."""
    model, x, y = made(kind)
    sn.FilteredSyncBatchNorm.convert_sync_batchnorm(model)
    shard(model, each, **(shard_options or {}))
    optimizer = make(model)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    gc = sn.GarbageCollector(model, x[:4], optimizers=optimizer, **options)
    parts = rank(), distributed.get_world_size()

    def unsynced():
        return Unsynced(model)

    found = loop(model, model, gc, optimizer, x, y, steps, parts, accumulate, unsynced, at=at, between=between)
    state = whole_state(model, optimizer, *found)
    now = [p for group in optimizer.param_groups for p in group["params"]]
    state["same objects"] = all(a is b for a, b in zip(held, now, strict=True))
    state["parts"] = sum(p.to_local().numel() for p in model.parameters())
    if rank() == 0:
        state["alone"] = alone(kind, steps, accumulate=accumulate, at=at, between=between)
    return state


class Unsynced:
    def __init__(self, model):
        self.model = model

    def __enter__(self):
        self.model.set_requires_gradient_sync(False)

    def __exit__(self, *_):
        self.model.set_requires_gradient_sync(True)


def perceptron_in_shards():
    return sharded(Perceptron, 40)


def convolutional_in_shards():
    return sharded(Convolutional, 40)
