"""Loading a shrunk checkpoint into a fresh model of the original size."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from .depth.closing import branches_that_left
from .errors import ShrinkError
from .filters import leave_fast_paths
from .graph.modules import Sizes, make_persistent
from .insides import IncompatibleKeys

__all__ = ["load_state_dict"]


@torch.no_grad()
def load_state_dict(model: nn.Module, state_dict: Mapping[str, Any]) -> IncompatibleKeys:
    """Resize ``model`` to the sizes in ``state_dict``, then load it strictly. Parameters keep their identity.

    model: has the same names, and every tensor is at least as large as in the checkpoint; a branch that had left the network
    leaves here too. Do this before the optimizer is made. Raises ShrinkError, with nothing changed, where names, dimensions or
    sizes do not fit.
    """
    own = model.state_dict(keep_vars=True)
    left_out = {name: buffer for name, buffer in model.named_buffers() if name in state_dict and name not in own}
    own |= left_out  # not persistent, but some of its entries have left: a collection put it into the checkpoint
    left = branches_that_left(model, own, state_dict)
    own = {name: tensor for name, tensor in own.items() if not name.startswith(tuple(left))}
    missing, unexpected = sorted(own.keys() - state_dict.keys()), sorted(state_dict.keys() - own.keys())
    if missing or unexpected:
        raise ShrinkError(f"load_state_dict: missing {missing[:5]}, unexpected {unexpected[:5]}")
    resized = []
    for name, tensor in own.items():
        if not isinstance(tensor, torch.Tensor):
            continue
        wanted, present = tuple(state_dict[name].shape), tuple(tensor.shape)
        if len(wanted) != len(present) or any(w > p for w, p in zip(wanted, present, strict=True)):
            raise ShrinkError(f"load_state_dict: {name} has shape {wanted}, expected at most {present}")
        if wanted != present:
            resized.append((tensor, wanted))
    for name in left_out:
        make_persistent(model, name)
    for gated in left.values():
        gated.put_stand_in(ExitStack())  # all checks have passed: nothing to undo
    sizes = Sizes(model)
    for tensor, shape in resized:
        empty = torch.empty(shape, dtype=tensor.dtype, device=tensor.device)
        tensor.set_(empty)  # type: ignore[call-overload]  # torch declares no set_ of a tensor alone
        tensor.grad = None
    sizes.sync(model)
    leave_fast_paths(model)
    return model.load_state_dict(state_dict)
