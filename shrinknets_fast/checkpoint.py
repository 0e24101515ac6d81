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
from .distributed.parts import fitting, resharded
from .errors import ShrinkError
from .filters import leave_fast_paths
from .graph.modules import Sizes, make_persistent
from .insides import IncompatibleKeys
from .latest import note_loaded
from .ops.compact import dense_strides
from .sharded import is_sharded
from .wrapped import unwrapped

__all__ = ["load_state_dict", "resize"]

Shapes = Mapping[str, tuple[int, ...]]
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
    if make_fit("load_state_dict", model, state_dict):
        wrappers.rebuild()
    return model.load_state_dict(state_dict)


@torch.no_grad()
def resize(model: nn.Module, sizes: Mapping[str, Any], *, prefix: str = "") -> None:
    """Give ``model`` the sizes of a shrunk checkpoint, without its values, which are loaded in parts, after ``fully_shard``.

    sizes: {prefix + name: a tensor, its shape, or what ``torch.distributed.checkpoint`` keeps about it}, as in
    ``FileSystemReader(folder).read_metadata().state_dict_metadata``; other entries are left out. model: as for
    :func:`load_state_dict`, also on the meta device, before ``fully_shard`` or after it; then before a collector is made, and
    with an optimizer that has no state yet. What changes size has undefined values.
    """
    make_fit("resize", unwrapped(model), shapes_in(sizes, prefix), parts=True)


def shapes_in(sizes: Mapping[str, Any], prefix: str) -> dict[str, torch.Tensor]:
    """What :func:`resize` takes, as tensors, without the prefix and without what has no shape."""
    shapes = {name.removeprefix(prefix): shape_of(size) for name, size in sizes.items() if name.startswith(prefix)}
    return {name: shape for name, shape in shapes.items() if shape is not None}


def shape_of(size: Any) -> Any:
    """A tensor, or without memory one of this shape; None for what has none."""
    if isinstance(size, torch.Tensor):
        return size
    shape = size if isinstance(size, (tuple, list)) else getattr(size, "size", None)
    return None if shape is None or callable(shape) else torch.empty(tuple(shape), device="meta")


@torch.no_grad()
def make_fit(
    what: str,
    model: nn.Module,
    state_dict: Mapping[str, Any],
    *,
    strict: bool = True,
    largest: Shapes | None = None,
    sizes: Sizes | None = None,
    parts: bool = False,
) -> list[tuple[torch.Tensor, tuple[int, ...]]]:
    """Give the tensors of ``model`` the sizes in ``state_dict``; returns those that changed, with the shapes that they had.

    what: the caller, for messages. strict: whether all names have to be there. largest: what they may have (None: as they are);
    sizes: the model's, from before it shrank. parts: whether it may be one that fully_shard has sharded. Raises ShrinkError,
    nothing changed.
    """
    resharded(model)
    own = model.state_dict(keep_vars=True)
    sharded = next((name for name, tensor in own.items() if is_sharded(tensor)), None)
    if sharded is not None and not parts:
        raise ShrinkError(f"{what}: {sharded} is sharded; do this before fully_shard")
    left_out = {name: buffer for name, buffer in model.named_buffers() if name in state_dict and name not in own}
    own |= left_out  # not persistent, but some of its entries have left: a collection put it into the checkpoint
    left = {} if sharded else branches_that_left(model, own, state_dict)  # there they stay, one feature wide
    staying = {name: tensor for name, tensor in own.items() if not name.startswith(tuple(left))}
    missing, unexpected = sorted(staying.keys() - state_dict.keys()), sorted(state_dict.keys() - own.keys())
    if strict and (missing or unexpected):
        raise ShrinkError(f"{what}: missing {missing[:5]}, unexpected {unexpected[:5]}")
    if missing:
        left = {}  # a part of a checkpoint, of which the rest may have them
    resized = []
    for name, tensor in staying.items():
        if not isinstance(tensor, torch.Tensor) or name not in state_dict:
            continue
        wanted, present = tuple(state_dict[name].shape), tuple(tensor.shape)
        most = (largest or {}).get(name, present)
        if len(wanted) != len(most) or any(w > m for w, m in zip(wanted, most, strict=True)):
            raise ShrinkError(f"{what}: {name} has shape {wanted}, expected at most {most}")
        if wanted != present:
            resized.append((tensor, wanted))
    fit = None if sharded is None else fitting(model)  # raises for what it does not know
    for name in left_out:
        make_persistent(model, name)
    for gated in left.values():
        gated.put_stand_in(ExitStack())  # all checks have passed: nothing to undo
    sizes = sizes or Sizes(model)
    changed = [(tensor, tuple(tensor.shape)) for tensor, _ in resized]
    for tensor, shape in resized:
        if fit is not None and is_sharded(tensor):
            fit(tensor, shape)
            continue
        strides = dense_strides(
            tensor, shape
        )  # channels-last stays it: another order would be computed by other kernels
        empty = torch.empty_strided(shape, strides, dtype=tensor.dtype, device=tensor.device)
        tensor.set_(empty)  # type: ignore[call-overload]  # torch declares no set_ of a tensor alone
        tensor.grad = None
    sizes.sync(model)
    leave_fast_paths(model)
    note_loaded(model)
    return changed + [(gated.gate.theta, tuple(gated.gate.theta.shape)) for gated in left.values()]


def without_prefix(state_dict: Mapping[str, Any], model: nn.Module) -> Mapping[str, Any]:
    """As the module inside would have named it, where it was saved from a wrapper."""
    for prefix in PREFIXES * 2:  # DistributedDataParallel of a compiled module, or the other way round
        if state_dict and all(key.startswith(prefix) for key in state_dict):
            if not all(key.startswith(prefix) for key in model.state_dict()):
                state_dict = OrderedDict(state_dict)
                consume_prefix_in_state_dict_if_present(state_dict, prefix)
    return state_dict
