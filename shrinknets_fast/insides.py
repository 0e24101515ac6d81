"""The private names of torch that this package needs, each once. What a new torch has lost fails in tests/test_insides.py first.

``torch._check`` and ``torch._foreach_*`` are in torch's own documentation and stand where they are used.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import nn
from torch._C import DisableTorchFunctionSubclass
from torch._decomp import register_decomposition
from torch._ops import OpOverload, OpOverloadPacket
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.jit._trace import is_tracing
from torch.nn.modules._functions import SyncBatchNorm as SyncBatchNormFunction
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.nn.modules.batchnorm import _NormBase as NormBase
from torch.nn.modules.conv import _ConvNd as ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm as InstanceNorm
from torch.nn.modules.module import _IncompatibleKeys as IncompatibleKeys
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._python_dispatch import _disable_current_modes as disable_current_modes

__all__ = [
    "ATTRIBUTES",
    "HOOKS",
    "BatchNorm",
    "ConvNd",
    "DisableTorchFunctionSubclass",
    "FakeTensorMode",
    "IncompatibleKeys",
    "InstanceNorm",
    "NormBase",
    "OpOverload",
    "OpOverloadPacket",
    "SyncBatchNormFunction",
    "TorchDispatchMode",
    "disable_current_modes",
    "function_modes_active",
    "is_tracing",
    "graphs_compiled",
    "is_wrapped",
    "never_compiled",
    "pytree",
    "recompile_limit",
    "register_comm_hook",
    "register_decomposition",
    "transforms_active",
    "users_of",
]


@contextlib.contextmanager
def lone_process() -> Iterator[None]:
    """A process group of this one alone."""
    distributed: Any = torch.distributed
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def lone_wrapper() -> Any:
    """A DistributedDataParallel of one process, to ask for its attributes."""
    with lone_process():
        return nn.parallel.DistributedDataParallel(nn.Linear(1, 1), static_graph=True)


# Where a module keeps its hooks.
HOOKS = (
    "_forward_pre_hooks",
    "_forward_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


def lone_sharded() -> Any:
    """A module that fully_shard has sharded among one process, to ask for its attributes."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    with lone_process():
        return fully_shard(nn.Linear(1, 1), mesh=init_device_mesh("cpu", (1,)))


def lone_part() -> Any:
    """What it keeps about a parameter."""
    return lone_sharded()._get_fsdp_state()._fsdp_param_group.fsdp_params[0]


# Attributes that are read where they are needed, and an object that has each.
ATTRIBUTES: dict[str, Callable[[], Any]] = {
    "_parameters": nn.Module,
    "_buffers": nn.Module,
    "_modules": nn.Module,
    "_non_persistent_buffers_set": nn.Module,
    "_compiled_call_impl": nn.Module,
    "_load_from_state_dict": nn.Module,
    "_reversed_padding_repeated_twice": lambda: nn.Conv2d(1, 1, 1),
    "_apply_instance_norm": lambda: nn.InstanceNorm2d(1),
    "_get_no_batch_dim": lambda: nn.InstanceNorm2d(1),
    "_version": lambda: torch.zeros(1),
    "_schema": lambda: torch.ops.aten.add.Tensor,
    "_overloadname": lambda: torch.ops.aten.add.Tensor,
    "_qualified_op_name": lambda: torch.ops.aten.add,
    "_unsafe_view": lambda: torch.ops.aten,
    "_optimizer_step_pre_hooks": lambda: torch.optim.SGD([torch.zeros(1)]),
    "_orig_mod": lambda: torch.compile(nn.Module()),
    "_build_params_for_reducer": lone_wrapper,
    "_build_debug_param_to_name_mapping": lone_wrapper,
    "_comm_hooks": lone_wrapper,
    "_ddp_init_helper": lone_wrapper,
    "_delay_all_reduce_params": lone_wrapper,
    "_get_ddp_logging_data": lone_wrapper,
    "_join_config": lone_wrapper,
    "_module_parameters": lone_wrapper,
    "_register_builtin_comm_hook": lone_wrapper,
    "_remove_autograd_hooks": lone_wrapper,
    "_static_graph_delay_allreduce_enqueued": lone_wrapper,
    "_use_python_reducer": lone_wrapper,
    "_get_fsdp_state": lone_sharded,
    "_fsdp_param_group": lambda: lone_sharded()._get_fsdp_state(),
    "_module_info": lone_part,
    "_orig_size": lone_part,
    "_contiguous_orig_stride": lone_part,
    "_init_sharded_post_forward_param_metadata": lone_part,
    "_set_comm_hook_name": lambda: lone_wrapper().logger,
    "_set_static_graph": lambda: lone_wrapper().reducer,
}


ATTRIBUTES |= dict.fromkeys(HOOKS, nn.Module)
Function = TypeVar("Function", bound=Callable[..., Any])


def never_compiled(function: Function) -> Function:
    """``function``, which runs as it is where compiled code calls it. torch.compiler.disable imports dynamo at once: seconds."""
    private: Any = torch
    return private._disable_dynamo(function)


def graphs_compiled() -> int:
    """How many graphs torch.compile has made in this process."""
    dynamo: Any = sys.modules.get("torch._dynamo")  # without it there are none
    return dynamo.utils.counters["stats"]["unique_graphs"] if dynamo else 0


def recompile_limit() -> int:
    """How many graphs of one function dynamo keeps; at the next size it runs uncompiled."""
    dynamo: Any = sys.modules.get("torch._dynamo")
    return dynamo.config.recompile_limit if dynamo else 8


def transforms_active() -> bool:
    """Whether torch.func's grad, vmap or the like is at work."""
    return torch._C._are_functorch_transforms_active()


def is_wrapped(tensor: torch.Tensor) -> bool:
    """Whether a transform of torch.func is looking at this tensor: batched, or differentiated."""
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def register_comm_hook(reducer: Any, state: object, hook: Callable[..., Any]) -> None:
    """As DistributedDataParallel does, on a reducer of its own making."""
    distributed: Any = torch.distributed
    distributed._register_comm_hook(reducer, state, hook)


def function_modes_active() -> bool:
    """Whether a TorchFunctionMode looks on."""
    return bool(torch._C._len_torch_function_stack())


def users_of(storage: torch.UntypedStorage) -> int:
    """How many tensors and Python objects hold this memory."""
    return torch._C._storage_Use_Count(storage._cdata)
