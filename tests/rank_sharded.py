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


def checkpoint(saved):
    """Train, save the parts, and go on: the state then. resume() starts from the parts."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict

    model, x, y, optimizer, gc = setting_in_shards()
    losses, removed = train_on(model, x, y, optimizer, gc, 0, 12)
    model_state, optimizer_state = get_state_dict(model, optimizer)
    dcp.save({"model": model_state, "optimizer": optimizer_state, "gc": gc.state_dict()}, checkpoint_id=saved)
    more, removed_later = train_on(model, x, y, optimizer, gc, 12, 24)
    state = whole_state(model, optimizer, more, [])
    return {**state, "removed": [removed, removed_later]}


def resume(saved):
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    model, x, y = made(Perceptron)
    sizes = dcp.FileSystemReader(saved).read_metadata().state_dict_metadata
    sn.resize(model, sizes, prefix="model.")
    shard(model)
    optimizer = adam(model)
    gc = sn.GarbageCollector(model, x[:4], optimizers=optimizer)
    model_state, optimizer_state = get_state_dict(model, optimizer)
    state = {"model": model_state, "optimizer": optimizer_state, "gc": gc.state_dict()}
    dcp.load(state, checkpoint_id=saved)
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    gc.load_state_dict(state["gc"])
    more, removed = train_on(model, x, y, optimizer, gc, 12, 24)
    return {**whole_state(model, optimizer, more, []), "removed": [[], removed]}


def train_on(model, x, y, optimizer, gc, first, last):
    losses, removed = [], []
    ranks = distributed.get_world_size()
    for step in range(first, last):
        rows = torch.arange(step * 32 + rank(), step * 32 + 32, ranks)
        loss = F.cross_entropy(model(x[rows]), y[rows]) + 3e-3 * sn.penalty(model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if (collection := gc.step()) is not None:
            removed.append(collection.removed)
    return losses, removed


def peak():
    """On this rank, in bytes: what a collection has at its peak over what was there, the largest part, and all that was there."""
    from torch.multiprocessing.reductions import StorageWeakRef
    from torch.utils import _pytree as pytree
    from torch.utils._python_dispatch import TorchDispatchMode

    torch.manual_seed(0)
    model = nn.Sequential(sn.FilteredLinear(256, 1024), nn.ReLU(), nn.Linear(1024, 256))
    shard(model)
    optimizer = adam(model)
    x = torch.randn(4, 256)
    gc = sn.GarbageCollector(model, x, optimizers=optimizer)
    model(x).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    for k in range(0, 1024, 2):
        set_entry(model[0].theta.detach(), k, 0.0)
    live = {}  # storages that are there: {address: (bytes, weak reference)}

    def note(tensors):
        for tensor in (t.to_local() if isinstance(t, DTensor) else t for t in tensors):
            if isinstance(tensor, torch.Tensor) and not tensor.is_meta:
                storage = tensor.untyped_storage()
                live[storage._cdata] = storage.nbytes(), StorageWeakRef(storage)
        for key in [key for key, (_, ref) in live.items() if ref.expired()]:
            del live[key]
        return sum(size for size, _ in live.values())

    class Ledger(TorchDispatchMode):
        most = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            self.most = max(self.most, note(pytree.tree_leaves(out)))
            return out

    before = note([*model.parameters(), *(t for state in optimizer.state.values() for t in state.values())])
    largest = max(t.to_local().nbytes for t in model.parameters())
    with Ledger() as ledger:
        collection = gc.collect()
    return ledger.most - before, largest, before, collection.removed


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
