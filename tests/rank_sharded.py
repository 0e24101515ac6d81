"""Ranks share the parts of one model (fully_shard): each case is called by all; test_sharded.py compares with one process."""

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
    return (
        [child for child in model if any(True for _ in child.parameters())] if isinstance(model, nn.Sequential) else []
    )


def shard(model, each=True, **options):
    options.setdefault("mesh", mesh())
    for layer in (layers(model) or list(model.children())) if each else ():
        fully_shard(layer, **options)
    return fully_shard(model, **options)


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


def sharded(
    kind, steps, make=adam, each=True, accumulate=1, at=None, between=None, depth=True, shard_options=None, **options
):
    """This rank's view of a run on all of them; on rank 0 with that of one process as "alone"."""
    model, x, y = made(kind, depth)
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
        state["alone"] = alone(kind, steps, make, depth, accumulate=accumulate, at=at, between=between)
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


def as_one_unit():
    return sharded(Perceptron, 30, each=False)


def convolutional_in_shards():
    return sharded(Convolutional, 40)


def residual_in_shards():
    """Its trunk is tied. The branches stay: so they do in one process, without a gate."""
    return sharded(Residual, 30, each=False, depth=False)


def kept_whole_after_forward():
    return sharded(Perceptron, 30, shard_options={"reshard_after_forward": False})


def replicated():
    """Four ranks, two with each part (HSDP)."""
    return sharded(
        Perceptron, 30, shard_options={"mesh": init_device_mesh("cpu", (2, 2), mesh_dim_names=("copy", "part"))}
    )


def replicas_that_differ():
    """A theta is another on one of two ranks that have it."""
    model, x, y = made(Perceptron)
    shard(model, mesh=init_device_mesh("cpu", (2, 2), mesh_dim_names=("copy", "part")))
    gc = sn.GarbageCollector(model, x[:4], optimizers=adam(model))
    if rank() == 3:
        model[0].theta.detach().to_local()[3] += 0.01
    gc.step()


def offloaded():
    return sharded(Perceptron, 30, shard_options={"offload_policy": CPUOffloadPolicy(pin_memory=False)})


def fused(model):
    return torch.optim.AdamW(sn.param_groups(model, lr=1e-3, filter_lr=2e-2, weight_decay=0.1), fused=True)


def fused_in_shards():
    return sharded(Perceptron, 30, make=fused)


def nesterov(model):
    return torch.optim.SGD(sn.param_groups(model, lr=3e-2, filter_lr=2.0), momentum=0.9, nesterov=True)


def nesterov_in_shards():
    return sharded(Perceptron, 30, make=nesterov)


def accumulated_in_shards():
    return sharded(Perceptron, 40, accumulate=2)


def collect_with_gradients(step, turn, model, gc):
    """Features die while reduced gradients wait for the step."""
    if step % 10 == 5:
        with torch.no_grad():
            for theta in (model[0].theta, model[2].theta):
                set_entry(theta, step % 7, 0.0)
        gc.collect()


def set_entry(theta, k, value):
    """Of a vector that may be sharded."""
    if isinstance(theta, DTensor):
        first = distributed.get_rank() * -(-len(theta) // distributed.get_world_size())
        theta, k = theta.to_local(), k - first
    if 0 <= k < len(theta):
        theta[k] = value


def pending_in_shards():
    return sharded(Perceptron, 40, between=collect_with_gradients)


def down_to_one(step, model):
    """Fewer features than ranks, so that a rank's part is empty."""
    if step == 10:
        with torch.no_grad():
            for k in range(63):
                set_entry(model[0].theta, k, 0.0)
            for k in range(64):
                set_entry(model[2].theta, k, 0.0)


def one_feature():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one stays as padding
        return sharded(Perceptron, 20, at=down_to_one)


def mixed_precision():
    """Against the same without a removal: (largest difference of the losses, features removed)."""
    losses = []
    for min_dead in (0.05, 1.0):
        model, x, y = made(Perceptron)
        shard(model, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32))
        optimizer = adam(model)
        gc = sn.GarbageCollector(model, x[:4], optimizers=optimizer, min_dead=min_dead)
        found = loop(model, model, gc, optimizer, x, y, 30, (rank(), distributed.get_world_size()))
        losses.append((torch.tensor(found[0]), sum(sum(c.removed.values()) for c in found[1])))
    return float((losses[0][0] - losses[1][0]).abs().max()), losses[0][1], losses[1][1]


def from_meta():
    """Initialised after fully_shard, on no rank as a whole: (features removed, shapes)"""
    torch.manual_seed(0)
    with torch.device("meta"):
        model = Perceptron()
    sn.add_filters(model, torch.empty(2, 64, device="meta"))
    shard(model)
    model.to_empty(device="cpu")
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    x = torch.randn(8, 64)
    optimizer = adam(model)
    gc = sn.GarbageCollector(model, x, optimizers=optimizer)
    for turn in range(3):
        model(x).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            set_entry(model[0].theta, turn, 0.0)
            set_entry(model[0].theta, 30 + turn, 0.0)
        gc.collect()
    model(x).sum().backward()
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


def counted():
    """penalty and features are those of the whole model: (penalty, its gradient, features), and those of one process"""
    model, x, y = made(Perceptron)
    with torch.no_grad():
        model[0].theta[:5] = 0
    expected = sn.penalty(model)
    expected.backward()
    alone = [expected.item(), model[0].theta.grad, sn.features(model)]
    model.zero_grad()
    shard(model)
    penalty = sn.penalty(model)
    penalty.backward()
    found = [penalty.item(), model[0].theta.grad.full_tensor(), sn.features(model)]
    return found, alone, repr(model)


def setting_in_shards(**options):
    model, x, y = made(Perceptron)
    shard(model)
    optimizer = adam(model)
    return model, x, y, optimizer, sn.GarbageCollector(model, x[:4], optimizers=optimizer, **options)


def step_on(model, x, y, optimizer):
    F.cross_entropy(model(x[rank() : 32 : 2]), y[rank() : 32 : 2]).backward()
    optimizer.step()
    optimizer.zero_grad()
