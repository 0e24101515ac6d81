"""Carry a plan out: on every tensor it names, its gradient and its optimizer state. Objects keep their identity."""

import torch

from ..errors import ShrinkError
from ..ops.compact import compact_
from ..optimizers import state_tensors
from .modules import sync_sizes
from .order import moved_bytes


def members(name, tensor, optimizers, following):
    """All tensors that shrink as ``tensor`` does: itself, its copies, their gradients, its state in each optimizer.

    An error names the one that cannot.
    """
    found = [tensor, *following.tensors(name, tensor.shape)]
    found += [t.grad for t in found if t.grad is not None]
    for optimizer in optimizers:
        found.extend(state_tensors(optimizer, tensor).values())
    for t in found:
        if t.layout != torch.strided:
            raise ShrinkError(f"{name}: its gradient has layout {t.layout}, expected torch.strided; zero_grad() before")
        if t.is_inference():
            raise ShrinkError(f"{name}: a copy of it was made under torch.inference_mode, where nothing can be resized")
    return found


@torch.no_grad()
def apply_plan(plan, network, hubs, model, optimizers, following, depthwise, before=lambda: None):
    """Compact everything the plan names, in place. Returns (bytes written, bytes no longer used).

    ``before()`` is called once nothing is known to stand in the way.
    """
    work, known = {}, {}
    for t in plan.tensors:
        for tensor in members(t.name, t.tensor, optimizers, following):
            keep = t.keep
            if tensor.shape != t.tensor.shape:  # a dimension of another size holds one entry for all features
                keep = {d: kept for d, kept in keep.items() if tensor.shape[d] == t.tensor.shape[d]}
            work[id(tensor)] = (tensor, keep)
    work = list(work.values())
    before()
    used = sum(tensor.nbytes for tensor, _ in work)
    moved = sum(moved_bytes(tensor, keep, known) for tensor, keep in work)
    compact_(work)
    freed = used - sum(tensor.nbytes for tensor, _ in work)
    network.features.remove(plan.gone, plan.fills)
    for bound in network.bound.values():
        bound.shape = tuple(bound.tensor.shape)
    for hub, planned in zip(hubs, plan.hubs, strict=True):
        hub.ids = hub.ids[planned.kept]
    sync_sizes(model, depthwise)
    following.sync(depthwise)
    return moved, freed
