"""What every launch does, whatever the kernel: where it may run, how float32 multiplies."""

import contextlib

import torch
import triton

from ..errors import ShrinkError

INTERPRETED = triton.knobs.runtime.interpret


def check_device(op, x):
    if x.device.type == "cpu" and not INTERPRETED:
        raise ShrinkError(f"{op}: x is on cpu, expected a CUDA device (or TRITON_INTERPRET=1, for tests)")


def on(device):
    """A launch goes to the current device, which need not be that of its tensors."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def products_of(x, kind):
    """ "half", "tf32" or "ieee", as torch's own products of x on this device would be. kind: torch's settings for such ops."""
    if x.dtype != torch.float32:
        return "half"
    return "tf32" if x.is_cuda and kind.fp32_precision == "tf32" else "ieee"


def precision_of(products):
    """What ``tl.dot`` is told."""
    return "tf32" if products == "tf32" else "ieee"


def dense(vector):
    return None if vector is None else vector.contiguous()
