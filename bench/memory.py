"""Bytes: how far a call raises the peak, and what a forward keeps for its backward."""

import warnings

import torch
from torch.profiler import ProfilerActivity, profile, record_function


def peak_rise(run, device, prepare=lambda: None):
    """How many bytes above the start the allocator went during ``run(state)``, with ``state = prepare()``.

    Exact: from the allocator, not from the process. On the CPU it knows the size of what is freed only if it saw it allocated:
    what ``run`` may free must come from ``prepare``.
    """
    if device.type == "cuda":
        state = prepare()
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run(state)
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch 2.11: that a profiler forgets its earlier cycles
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            state = prepare()
            with record_function("peak_rise"):
                run(state)
    events = profiler.profiler.kineto_results.events()
    start = next(e.start_ns() for e in events if e.name() == "peak_rise")
    level = highest = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        if event.name() == "[memory]" and event.start_ns() >= start:
            level += event.nbytes()
            highest = max(highest, level)
    return highest


def saved_bytes(forward):
    """{storage: bytes} that autograd keeps after ``forward()``, whatever it belongs to."""
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # the tensor stays, or its address would be used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = forward()
    del output
    return sum(size for size, _ in kept.values())
