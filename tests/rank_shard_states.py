"""Ranks that share the parts of a model: checkpoints of the parts, and the memory that a collection takes."""

import torch
import torch.nn.functional as F
from rank_sharded import set_entry, setting_in_shards, shard, whole_state
from rank_training import Perceptron, adam, made, rank
from torch import distributed, nn
from torch.distributed.tensor import DTensor

import shrinknets_fast as sn


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
