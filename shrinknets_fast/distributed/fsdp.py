"""fully_shard (FSDP2): where torch keeps the parts of the parameters, and everything that it notes about their sizes.

All private names that this needs are here. A torch whose objects hold more than what is listed is refused: it may note a size.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from ..errors import ShrinkError

# What FSDPParam holds in torch 2.11 to 2.15: sizes, which resize() sets ...
SIZES = (
    "_orig_size",
    "_contiguous_orig_stride",
    "sharded_size",
    "contiguous_sharded_stride",
    "padded_sharded_param_size",
    "sharded_post_forward_size",
    "contiguous_sharded_post_forward_stride",
)
# ... what reset_sharded_param() or the next all-gather makes of them ...
MADE = (
    "_sharded_param_data",
    "_sharding_spec",
    "_sharding_spec_by_dtype",
    "sharded_param",
    "all_gather_outputs",
    "_unsharded_param",
    "_unsharded_inner_tensors",
    "_extensions_data",
    "_sharded_post_forward_param",
    "_sharded_post_forward_param_data",
    "unsharded_accumulated_grad",
)
# ... and what depends on no size.
OTHER = (
    "_dp_dim_indices",
    "_has_sharded_grad_dtype_override",
    "_module_info",
    "_orig_param_uid",
    "_param_fqn",
    "_post_load_hook_handle",
    "_release_all_gather_outputs_after_post_all_gather",
    "_shard_mesh",
    "_spmd_mesh",
    "_spmd_placements",
    "_unsharded_dtensor_spec",
    "device",
    "fsdp_placement",
    "grad_offload_event",
    "is_dtensor",
    "is_spmd_types",
    "keep_unsharded_storage",
    "mesh_info",
    "mp_policy",
    "offload_to_cpu",
    "orig_dtype",
    "param_dtype",
    "pin_memory",
    "post_forward_mesh_info",
    "reduce_dtype",
    "sharded_grad_dtype",
    "sharded_state",
)
NEEDED = {*SIZES[:5], *MADE[:2], "sharded_param", "all_gather_outputs", "_module_info", "fsdp_placement", "mesh_info"}
KNOWN = {*SIZES, *MADE, *OTHER}


def units(model: nn.Module) -> list[Any]:
    """The modules that fully_shard was applied to, outermost first."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # 0.7 s to import
    kind = getattr(fsdp, "FSDPModule", None)
    return [] if kind is None else [module for module in model.modules() if isinstance(module, kind)]


def groups(model: nn.Module) -> list[Any]:
    """The parameter groups of all units: what one communication gathers."""
    found: list[Any] = []
    for unit in units(model):
        state = unit._get_fsdp_state()
        several = getattr(state, "_fsdp_param_groups", None)
        found += [state._fsdp_param_group] if several is None else several
    return [group for group in found if group is not None]


def parameters(model: nn.Module) -> dict[str, Any]:
    """{name: FSDPParam}; one that is tied has several names."""
    names = {id(module): name for name, module in model.named_modules()}
    found = {}
    for group in groups(model):
        for p in group.fsdp_params:
            for module, leaf in holders(p):
                found[f"{names[id(module)]}.{leaf}" if names[id(module)] else leaf] = p
    return found


def holders(p: Any) -> Iterator[tuple[nn.Module, str]]:
    """(module, name in it) of each place that has the parameter."""
    info = p._module_info
    yield info.module, info.param_name
    yield from zip(info.shared_modules, info.shared_param_names, strict=True)


def reshard(model: nn.Module) -> None:
    """Parameters are those that the optimizer has: the root keeps its own whole after a forward."""
    for unit in units(model):
        unit.reshard()


def check(model: nn.Module) -> None:
    """Raises ShrinkError for what :func:`resize` does not know, and for parameters that nobody averages."""
    sharded = parameters(model)
    for name, p in sharded.items():
        check_internals(p)
        if p.is_dtensor or getattr(p, "is_spmd_types", False):
            raise ShrinkError(f"{name} is sharded twice, as tensor parallelism does; expected fully_shard alone")
        if len(p.sharded_param.placements) != p.sharded_param.device_mesh.ndim or not any(
            placement.is_shard() for placement in p.sharded_param.placements
        ):
            raise ShrinkError(
                f"{name} has placements {p.sharded_param.placements}, expected one of them to be Shard(0)"
            )
        if p.fsdp_placement.dim != 0:
            where = f"is sharded along dimension {p.fsdp_placement.dim}, where fully_shard wants equal parts"
            raise ShrinkError(f"{name} {where} and removals leave others; expected Shard(0)")
        if type(p.sharded_param.to_local().detach()) is not torch.Tensor:
            kind = type(p.sharded_param.to_local().detach()).__name__
            raise ShrinkError(f"{name} holds its part as {kind}, which cannot shrink; expected a plain tensor")
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.requires_grad and name not in sharded:
            what = f"{name} is not among the parameters that fully_shard has sharded, so no rank averages it"
            raise ShrinkError(f"{what}; apply fully_shard to the whole model too, and ignore none of its parameters")


def check_internals(p: Any) -> None:
    has = set(vars(p))
    for what, names in (("holds", has - KNOWN), ("lacks", NEEDED - has)):
        if names:
            where = f"fully_shard of torch {torch.__version__} {what} {sorted(names)[0]!r}"
            raise ShrinkError(f"{where}, which this version of shrinknets_fast does not know; train with another torch")


def check_idle(model: nn.Module) -> None:
    """Raises ShrinkError where gradients wait that no rank has averaged: they are whole, and would be of another size."""
    for group in groups(model):
        if any(map(is_waiting, group.fsdp_params)) or getattr(group, "_partial_reduce_output", None) is not None:
            what = "gradients wait that were not reduced (set_requires_gradient_sync(False))"
            raise ShrinkError(f"GarbageCollector: {what}; collect after a backward that reduces them")


def is_waiting(p: Any) -> bool:
    whole = getattr(getattr(p, "_unsharded_param", None), "grad", None)
    return (
        whole is not None or getattr(p, "unsharded_accumulated_grad", None) is not None
    )  # the latter up to torch 2.14


def mesh_of(model: nn.Module) -> Any:
    """The one device mesh of all parameters."""
    meshes = {p.sharded_param.device_mesh for p in parameters(model).values()}
    if len(meshes) != 1:
        raise ShrinkError(f"model is sharded over {len(meshes)} device meshes, expected one")
    mesh = meshes.pop()
    if mesh.ndim > 1 and mesh.size() != torch.distributed.get_world_size():
        size = torch.distributed.get_world_size()
        raise ShrinkError(
            f"model is sharded over {mesh.size()} of {size} ranks in {mesh.ndim} dimensions, expected all"
        )
    return mesh


def resize(p: Any, shape: Sequence[int], part: torch.Tensor) -> None:
    """Make the FSDPParam one of this shape, of which this rank has ``part``. Its Parameter stays the object that it is."""
    whole = torch.empty(shape, device="meta")
    ranks = p.mesh_info.shard_mesh_size
    chunks = [len(chunk) for chunk in whole.chunk(ranks)] if len(whole) else [0]
    p._orig_size, p._contiguous_orig_stride = whole.shape, whole.stride()
    p.sharded_size, p.contiguous_sharded_stride = part.shape, part.stride()
    p.padded_sharded_param_size = torch.Size([chunks[0], *shape[1:]])
    old = p.sharded_param
    grad_dtype = {name: getattr(old, name) for name in ("grad_dtype",) if hasattr(old, name)}
    new = nn.Parameter(sharded_as(old, shape, part), requires_grad=old.requires_grad)
    old.grad = None
    torch.utils.swap_tensors(old, new)
    if getattr(p, "_has_sharded_grad_dtype_override", False):
        old.grad_dtype = grad_dtype["grad_dtype"]
    for module, name in holders(p):
        module._parameters[name] = old
    p.all_gather_outputs = []
    vars(p).pop("_unsharded_param", None)
    p.reset_sharded_param()
    if p.post_forward_mesh_info is not None:
        p._init_sharded_post_forward_param_metadata(whole)


def forget_layouts(model: nn.Module) -> None:
    """Of the groups: since torch 2.15 they keep where each gradient lies in what one communication reduces."""
    for group in groups(model):
        vars(group).get("_partial_reduce_output_layout", {}).clear()


def sharded_as(tensor: Any, shape: Sequence[int], part: torch.Tensor) -> torch.Tensor:
    """A DTensor of this shape with the mesh and the placements of ``tensor``."""
    from torch.distributed.tensor import DTensor

    stride = torch.empty(shape, device="meta").stride()
    mesh, placements = tensor.device_mesh, tensor.placements
    return DTensor.from_local(part, mesh, placements, run_check=False, shape=torch.Size(shape), stride=stride)
