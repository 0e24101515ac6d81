"""Carry a plan out: on every tensor it names, its gradient and its optimizer state. Objects keep their identity."""

import torch

from ..optimizers import state_tensors
from .modules import sync_sizes


def members(plan, optimizers, following):
    """All tensors that go where the planned one goes: itself, its copies, their gradients, its state in each optimizer."""
    found = [plan.tensor, *following.tensors(plan.name, plan.tensor.shape)]
    found += [t.grad for t in found if t.grad is not None]
    for optimizer in optimizers:
        found.extend(state_tensors(optimizer, plan.tensor).values())
    return found


def taken(tensor, keep, shape):
    """The positions ``keep`` of ``tensor``, dense, in its own memory format. shape: that of the parameter it belongs to."""
    result = tensor.detach()
    for dim, index in keep.items():
        if tensor.shape[dim] != shape[dim]:  # one entry for all features of this dimension
            continue
        result = result.index_select(dim, index.to(tensor.device))
    for layout in (torch.channels_last, torch.channels_last_3d):
        if tensor.dim() == (4 if layout is torch.channels_last else 5) and not tensor.is_contiguous():
            result = result.contiguous(memory_format=layout) if tensor.is_contiguous(memory_format=layout) else result
    return result


@torch.no_grad()
def apply_plan(plan, network, hubs, model, optimizers, following, depthwise):
    """Compact everything the plan names. Returns (bytes written, bytes freed).

    All new tensors exist before the first one is put in place, so that a failure leaves the model as it was.
    """
    work = []
    for t in plan.tensors:
        shape = tuple(t.tensor.shape)
        work += [(old, taken(old, t.keep, shape)) for old in members(t, optimizers, following)]
    moved = sum(new.numel() * new.element_size() for _, new in work)
    freed = sum(old.numel() * old.element_size() for old, _ in work) - moved
    for old, new in work:
        old.set_(new)  # not through .data: set_ bumps the version and resets the gradient accumulator
    network.features.remove(plan.gone)
    for bound in network.bound.values():
        bound.shape = tuple(bound.tensor.shape)
    for hub in hubs:
        hub.ids = hub.ids[~plan.gone[hub.ids]]
    sync_sizes(model, depthwise)
    following.sync(depthwise)
    return moved, freed
