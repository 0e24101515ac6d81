"""Carry a plan out: on every tensor it names, its gradient and its optimizer state. Objects keep their identity."""

import itertools

import torch

from ..companions.state import Member
from ..errors import ShrinkError
from ..ops.compact import compact_, is_dense
from .order import moved_bytes


def members(name, tensor, optimizers, following):
    """The :class:`Member` s that shrink as ``tensor`` does: itself, its copies, their gradients, its state in each optimizer.

    An error names what cannot.
    """
    alike = [tensor, *following.tensors(name, tensor)]
    alike += [t.grad for t in alike if t.is_leaf and t.grad is not None]
    found = [Member(t, tuple(range(t.dim()))) for t in alike]
    for optimizer in optimizers:
        found += optimizer.state(tensor)
    for t in (member.tensor for member in found):
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
    work, known, found = {}, {}, []
    for t in plan.tensors:
        for member in members(t.name, t.tensor, optimizers, following):
            key = id(member.tensor)
            if work.get(key, (t.name,))[0] != t.name:
                raise ShrinkError(f"follow: {work[key][0]} and {t.name} are one tensor there, expected one each")
            work[key] = (t.name, member.tensor, member.kept(t.keep))
            found.append(member)
    work, again = without_aliases(work.values())
    check_apart(work)
    work = [(tensor, keep) for _, tensor, keep in work]
    before()
    used = sum(tensor.nbytes for tensor, _ in work)
    moved = sum(moved_bytes(tensor, keep, known) for tensor, keep in work)
    compact_(work)
    for alias, first in again:
        alias.set_(first)
    for member in found:
        member.put_in_row()
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
