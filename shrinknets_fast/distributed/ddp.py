"""DistributedDataParallel: it keeps its own record of the gradients, in its reducer, which is made anew in the same wrapper."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ..errors import ShrinkError
from ..insides import register_comm_hook

HOOK_STATES = "torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook"


def check(wrapper: Any) -> None:
    """Raises ShrinkError for what would not survive :func:`rebuild`."""
    refused = {
        "mixed_precision": wrapper.mixed_precision is not None,
        "delay_all_reduce_named_params": bool(wrapper._delay_all_reduce_params),
        "apply_optimizer_in_backward": any(hasattr(p, "_in_backward_optimizers") for p in wrapper.parameters()),
        "torch._dynamo.config.optimize_ddp='python_reducer'": wrapper._use_python_reducer,
    }
    for name, is_used in refused.items():
        if is_used:
            raise ShrinkError(f"model is a DistributedDataParallel with {name}, which cannot shrink; train without it")
    for hook, state in wrapper._comm_hooks:
        check_state(hook, state)


def check_averaged(wrappers: Iterable[Any], model: nn.Module) -> None:
    """Raises ShrinkError for a parameter that none of them averages: made after it, or another model's wrapper."""
    averaged = {id(p) for wrapper in wrappers for p in wrapper._module_parameters}
    for name, p in model.named_parameters():
        if p.requires_grad and id(p) not in averaged:
            what = f"{name} is not among the parameters that its DistributedDataParallel averages"
            raise ShrinkError(f"{what}; wrap the model after add_filters, and ignore none of its parameters")


def check_state(hook: Any, state: Any) -> None:
    """A state with tensors is kept bucket by bucket, and buckets change; PowerSGD's is known, and starts anew."""
    if state is None or is_power_sgd(state):
        return
    for name, value in vars(state).items() if hasattr(state, "__dict__") else ():
        values = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else [value]
        if any(isinstance(v, torch.Tensor) and v.numel() > 1 for v in values):
            what = f"the communication hook {getattr(hook, '__name__', hook)} keeps tensors in its state's {name!r}"
            raise ShrinkError(f"{what}, which cannot shrink; train with a hook that keeps none, or PowerSGD's")


def check_not_joining(wrapper: Any) -> None:
    if wrapper._join_config.enable:
        what = "ranks that have run out of inputs take no part in a collection"
        raise ShrinkError(f"GarbageCollector: the model is inside Join, and {what}; give all ranks as many batches")


def rebuild(wrapper: Any) -> None:
    """The same object with a new reducer over its module's tensors as they are now: options, hooks and gradients are kept."""
    builtin = None if wrapper._comm_hooks else wrapper._get_ddp_logging_data().get("comm_hook")
    wrapper._remove_autograd_hooks()  # two reducers would answer
    parameters, sparse = wrapper._build_params_for_reducer()
    ignored = wrapper.parameters_to_ignore
    wrapper._module_parameters = [p for n, p in wrapper.module.named_parameters() if n not in ignored]
    names = wrapper._build_debug_param_to_name_mapping(parameters)
    wrapper._ddp_init_helper(parameters, sparse, names, wrapper.static_graph)
    if wrapper.static_graph:
        wrapper._static_graph_delay_allreduce_enqueued = False
        wrapper.reducer._set_static_graph()
        wrapper.logger._set_static_graph()
    for hook, state in wrapper._comm_hooks:
        start_anew(state)
        wrapper.logger._set_comm_hook_name(hook.__qualname__)
        register_comm_hook(wrapper.reducer, state, hook)
    if builtin:
        distributed: Any = torch.distributed
        wrapper._register_builtin_comm_hook(getattr(distributed.BuiltinCommHookType, builtin.rpartition(".")[2]))


def is_power_sgd(state: Any) -> bool:
    known = sys.modules.get(HOOK_STATES)
    return known is not None and isinstance(state, known.PowerSGDState)


def start_anew(state: Any) -> None:
    """PowerSGD: errors and factors of buckets that are gone are forgotten. Two steps are averaged whole, as at its start: buckets
    have another order after the first."""
    if is_power_sgd(state):
        for memory in (state.error_dict, state.p_memory_dict, state.q_memory_dict):
            memory.clear()
        state.iter = min(state.iter, max(state.start_powerSGD_iter - 2, 0))
