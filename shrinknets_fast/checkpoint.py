"""Loading a shrunk checkpoint into a fresh model of the original size."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from .depth.closing import branches_that_left
from .distributed import Wrappers
from .errors import ShrinkError
from .filters import leave_fast_paths
from .graph.modules import Sizes, make_persistent
from .insides import IncompatibleKeys
from .ops.compact import dense_strides
from .wrapped import unwrapped

__all__ = ["load_state_dict"]

PREFIXES = ("module.", "_orig_mod.")


@torch.no_grad()
def load_state_dict(model: nn.Module, state_dict: Mapping[str, Any]) -> IncompatibleKeys:
    """Resize ``model`` to the sizes in ``state_dict``, then load it strictly. Parameters keep their identity.

    model: has the same names (a wrapper's prefix does not count, on either side), and every tensor is at least as large as in
    the checkpoint; a branch that had left the network leaves here too. Do this before the optimizer is made, under
    DistributedDataParallel on all ranks. Raises ShrinkError, with nothing changed, where names, dimensions or sizes do not fit.
    """
    wrappers, model = Wrappers(model), unwrapped(model)
    wrappers.find()
    state_dict = without_prefix(state_dict, model)
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
        strides = dense_strides(
            tensor, shape
        )  # channels-last stays it: another order would be computed by other kernels
        empty = torch.empty_strided(shape, strides, dtype=tensor.dtype, device=tensor.device)
        tensor.set_(empty)  # type: ignore[call-overload]  # torch declares no set_ of a tensor alone
        tensor.grad = None
    sizes.sync(model)
    leave_fast_paths(model)
    if resized or left:
        wrappers.rebuild()
    return model.load_state_dict(state_dict)


def without_prefix(state_dict: Mapping[str, Any], model: nn.Module) -> Mapping[str, Any]:
    """As the module inside would have named it, where it was saved from a wrapper."""
    for prefix in PREFIXES * 2:  # DistributedDataParallel of a compiled module, or the other way round
        if state_dict and all(key.startswith(prefix) for key in state_dict):
            if not all(key.startswith(prefix) for key in model.state_dict()):
                state_dict = OrderedDict(state_dict)
                consume_prefix_in_state_dict_if_present(state_dict, prefix)
    return state_dict
