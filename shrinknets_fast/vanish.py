"""Depth: a residual branch whose gate is dead leaves the network, and its parameters leave the optimizer."""

import torch
from torch import nn

from .nn import Gated


def closed_branches(model, dead):
    """{name: Gated} of those whose gate is dead and whose branch is still there. dead: {id(theta): mask of its features}."""
    gated = {name: m for name, m in model.named_modules() if isinstance(m, Gated) and not m.vanished}
    return {name: m for name, m in gated.items() if bool(dead[id(m.gate.theta)].all())}


@torch.no_grad()
def vanish(model, branches, optimizers, still_runs, undo):
    """Take the branches out and return the names of those that went; ``undo``, an ExitStack, learns how to put them back.

    ``still_runs()`` tells whether the model still does, or raises what the model raises; where it does not, because a branch
    changes the shape of its input, that branch stays as it was.
    """
    before = {id(p) for p in model.parameters()}
    gone = []
    for name, gated in branches.items():
        branch = gated[0]
        put_stand_in(gated, undo)
        try:
            runs = still_runs()
        except Exception:
            runs = False
        if runs:
            gone.append(name)
        else:
            gated[0] = branch
    left = {id(p) for p in model.parameters()}
    for optimizer in optimizers:
        optimizer.drop(before - left, undo)
    return tuple(gone)


def put_stand_in(gated, undo):
    """What is left of a branch: the gate's zeros are all that is read of it."""
    if not gated.vanished:
        undo.callback(gated.__setitem__, 0, gated[0])
        gated[0] = nn.Identity().train(gated.training)
