"""What ops ask of their arguments, for the fakes: the twin of csrc/checks.h, in the same words."""

from __future__ import annotations

import torch

COMPUTED = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def check_dtype(op: str, name: str, dtype: torch.dtype) -> None:
    found = str(dtype).removeprefix("torch.")
    torch._check(
        dtype in COMPUTED, lambda: f"{op}: {name} has dtype {found}, expected float64, float32, float16 or bfloat16"
    )


def check_same_device(op: str, name: str, t: torch.Tensor, other: str, u: torch.Tensor) -> None:
    torch._check(t.device == u.device, lambda: f"{op}: {name} is on {t.device}, expected {u.device} as {other}")


def check_vector(op: str, name: str, t: torch.Tensor, size: int, match: str) -> None:
    torch._check(
        t.dim() == 1 and t.shape[0] == size,
        lambda: f"{op}: {name} has shape {tuple(t.shape)}, expected ({size},) to match {match}",
    )


def check_same_shape(op: str, name: str, t: torch.Tensor, other: str, u: torch.Tensor) -> None:
    def message() -> str:
        return f"{op}: {name} has shape {tuple(t.shape)}, expected {tuple(u.shape)} as {other}"

    torch._check(t.dim() == u.dim(), message)
    for a, b in zip(t.shape, u.shape, strict=True):
        torch._check(a == b, message)


def check_like(
    op: str, name: str, t: torch.Tensor, other: str, u: torch.Tensor, first: str, leader: torch.Tensor
) -> None:
    """A gradient ``t``: any dtype, the device of the op's ``first`` argument ``leader``, the shape of ``other`` ``u``."""
    check_dtype(op, name, t.dtype)
    check_same_device(op, name, t, first, leader)
    check_same_shape(op, name, t, other, u)


def check_theta(op: str, name: str, t: torch.Tensor, first: torch.Tensor) -> None:
    check_dtype(op, name, t.dtype)
    fits = t.dim() == 1 and t.is_contiguous()
    torch._check(fits, lambda: f"{op}: {name} has shape {tuple(t.shape)}, expected one dimension without gaps")
    check_same_device(op, name, t, "thetas[0]", first)
