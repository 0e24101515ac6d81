"""Carry a plan out: on every tensor it names, its gradient and its optimizer state. Objects keep their identity."""

import itertools

import torch

from ..errors import ShrinkError
from ..ops.compact import compact_, is_dense
from ..optimizers import state_tensors
from .order import moved_bytes


def members(name, tensor, optimizers, following):
    """All tensors that shrink as ``tensor`` does: itself, its copies, their gradients, its state in each optimizer.

    An error names the one that cannot.
    """
    found = [tensor, *following.tensors(name, tensor)]
    found += [t.grad for t in found if t.is_leaf and t.grad is not None]
    for optimizer in optimizers:
        found.extend(state_tensors(optimizer, tensor).values())
    for t in found:
        if t.layout != torch.strided:
            raise ShrinkError(f"{name}: its gradient has layout {t.layout}, expected torch.strided; zero_grad() before")
        if t.is_inference():
            raise ShrinkError(f"{name}: a copy of it was made under torch.inference_mode, where nothing can be resized")
    return found


@torch.no_grad()
def apply_plan(plan, network, hubs, model, optimizers, following, sizes, before=lambda: None):
    """Compact everything the plan names, in place. Returns (bytes written, bytes no longer used).

    ``before()`` is called once nothing is known to stand in the way.
    """
    work, known = {}, {}
    for t in plan.tensors:
        for tensor in members(t.name, t.tensor, optimizers, following):
            keep = t.keep
            if tensor.shape != t.tensor.shape:  # a dimension of another size holds one entry for all features
                keep = {d: kept for d, kept in keep.items() if tensor.shape[d] == t.tensor.shape[d]}
            first = work.get(id(tensor), (t.name,))[0]
            if first != t.name:
                raise ShrinkError(f"follow: {first} and {t.name} are one tensor there, expected one each")
            work[id(tensor)] = (t.name, tensor, keep)
    work, again = without_aliases(work.values())
    check_apart(work)
    work = [(tensor, keep) for _, tensor, keep in work]
    before()
    used = sum(tensor.nbytes for tensor, _ in work)
    moved = sum(moved_bytes(tensor, keep, known) for tensor, keep in work)
    compact_(work)
    for alias, first in again:
        alias.set_(first)
    freed = used - sum(tensor.nbytes for tensor, _ in work)
    network.features.remove(plan.gone, plan.fills)
    for bound in network.bound.values():
        bound.shape = tuple(bound.tensor.shape)
    for hub, planned in zip(hubs, plan.hubs, strict=True):
        hub.ids = hub.ids[planned.kept]
    sizes.sync(model)
    following.sync(sizes)
    return moved, freed


def without_aliases(work):
    """Of (name, tensor, keep): those to move, and (alias, tensor) where a copy is followed twice, as in a state_dict too."""
    first, again = {}, []
    for name, tensor, keep in work:
        place = tensor.data_ptr() or id(tensor)
        key = (name, tensor.device, tensor.dtype, place, tensor.shape, tensor.stride())
        if key in first:
            again.append((tensor, first[key][1]))
        else:
            first[key] = (name, tensor, keep)
    return list(first.values()), again


def check_apart(work):
    """Tensors that lie over each other would be moved twice; those with gaps are moved to memory of their own."""
    dense = [(name, t) for name, t, _ in work if t.data_ptr() and is_dense(t)]
    dense.sort(key=lambda entry: (str(entry[1].device), entry[1].data_ptr()))
    for (low, below), (high, above) in itertools.pairwise(dense):
        if below.device == above.device and below.data_ptr() + below.nbytes > above.data_ptr():
            raise ShrinkError(f"{low} and {high} share memory, in a copy or a gradient; expected tensors of their own")
