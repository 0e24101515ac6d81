"""What ops ask of their arguments, for the fakes: the twin of csrc/checks.h, in the same words."""

import torch

COMPUTED = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def check_dtype(op, name, dtype):
    found = str(dtype).removeprefix("torch.")
    torch._check(
        dtype in COMPUTED, lambda: f"{op}: {name} has dtype {found}, expected float64, float32, float16 or bfloat16"
    )


def check_same_device(op, name, t, other, u):
    torch._check(t.device == u.device, lambda: f"{op}: {name} is on {t.device}, expected {u.device} as {other}")


def check_vector(op, name, t, size, match):
    torch._check(
        t.dim() == 1 and t.shape[0] == size,
        lambda: f"{op}: {name} has shape {tuple(t.shape)}, expected ({size},) to match {match}",
    )


def check_same_shape(op, name, t, other, u):
    def message():
        return f"{op}: {name} has shape {tuple(t.shape)}, expected {tuple(u.shape)} as {other}"

    torch._check(t.dim() == u.dim(), message)
    for a, b in zip(t.shape, u.shape, strict=True):
        torch._check(a == b, message)


def check_like(op, name, t, other, u, first, leader):
    """A gradient ``t``: any dtype, the device of the op's ``first`` argument ``leader``, the shape of ``other`` ``u``."""
    check_dtype(op, name, t.dtype)
    check_same_device(op, name, t, first, leader)
    check_same_shape(op, name, t, other, u)
