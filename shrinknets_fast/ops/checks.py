"""What ops ask of their arguments, for the fakes: the twin of csrc/checks.h, in the same words."""

from __future__ import annotations

import torch

IN_TRITON = (torch.float32, torch.float16, torch.bfloat16)  # sums are float32 there
COMPUTED = (torch.float64, *IN_TRITON)


def check_dtype(op: str, name: str, dtype: torch.dtype, allowed: tuple[torch.dtype, ...] = COMPUTED) -> None:
    names = [str(t).removeprefix("torch.") for t in (dtype, *allowed)]
    expected = f"{', '.join(names[1:-1])} or {names[-1]}"
    torch._check(dtype in allowed, lambda: f"{op}: {name} has dtype {names[0]}, expected {expected}")


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


def check_layer(op: str, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, theta: torch.Tensor) -> None:
    """What the ops that are a whole layer in Triton ask of their dtypes, devices and vectors."""
    for name, t in (("x", x), ("weight", weight), ("bias", bias), ("theta", theta)):
        if t is not None:
            check_dtype(op, name, t.dtype, IN_TRITON)
            check_same_device(op, name, t, "x", x)
        if t is not None and name in ("bias", "theta"):
            check_vector(op, name, t, weight.shape[0], f"weight {tuple(weight.shape)}")


def check_theta(op: str, name: str, t: torch.Tensor, first: torch.Tensor) -> None:
    check_dtype(op, name, t.dtype)
    fits = t.dim() == 1 and t.is_contiguous()
    torch._check(fits, lambda: f"{op}: {name} has shape {tuple(t.shape)}, expected one dimension without gaps")
    check_same_device(op, name, t, "thetas[0]", first)
