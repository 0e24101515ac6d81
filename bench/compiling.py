"""torch.compile as a rival, where a compiler for it exists."""

import io
from contextlib import redirect_stderr, redirect_stdout
from functools import cache

import torch


@cache
def why_not(kind):
    """Why torch.compile cannot be used on ``kind``, in one line; empty where it works."""
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            torch.compile(lambda x: x * 2 + 1)(torch.ones(8, device=kind))
    except Exception as error:  # no C++ compiler, no Triton, no header: each raises its own kind
        return f"torch.compile fails: {' '.join(str(error).split())[:120]}"
    return ""


def compiled(call, device):
    """``call`` compiled for the shapes it is first given, or the reason why not. The first call, untimed, compiles."""
    reason = why_not(device.type)
    if not reason:
        torch.compiler.reset()  # code compiled for earlier cases would count against its limits
    return reason or torch.compile(call, dynamic=False)
