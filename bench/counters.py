"""Counts on a GPU: synchronisations and kernel launches of a call."""

import warnings

import torch
from torch.profiler import ProfilerActivity, profile


def synchronisations(call):
    """How often ``call()`` makes the host wait for the device, as far as torch sees it."""
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return sum("called a synchronizing" in str(w.message) for w in caught)


def launches(call):
    """Kernels, copies and fills that ``call()`` puts on the device."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profiler.events())


def counted(call, device):
    """{"launches", "syncs"} on CUDA, else nothing. ``call`` runs twice; it must be repeatable."""
    if device.type != "cuda":
        return {}
    return {"syncs": synchronisations(call), "launches": launches(call)}
