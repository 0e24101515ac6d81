"""bury_: zeros where theta is dead, in theta and in its optimizer's state, so that nothing moves it again.

``theta[k] = 0`` and ``state[k] = 0`` where ``theta[k] <= 0``, for all thetas of a device in one launch. A NaN is not dead.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import torch

from .checks import COMPUTED, check_same_shape, check_theta

_bury_ = torch.ops.shrinknets_fast.bury_


@torch.library.register_fake("shrinknets_fast::bury_")
def _(thetas: Sequence[torch.Tensor], state: Sequence[torch.Tensor], owner: Sequence[int]) -> None:
    torch._check(len(state) == len(owner), lambda: f"bury_: owner has {len(owner)} entries, expected {len(state)}")
    for i, theta in enumerate(thetas):
        check_theta("bury_", f"thetas[{i}]", theta, thetas[0])
    for i, (value, of) in enumerate(zip(state, owner, strict=True)):
        words = f"bury_: owner holds {of}, expected 0 to {len(thetas) - 1}"
        torch._check(0 <= of < len(thetas), partial(str, words))
        check_theta("bury_", f"state[{i}]", value, thetas[0])
        check_same_shape("bury_", f"state[{i}]", value, "its theta", thetas[of])


@torch.no_grad()
def bury_(thetas: Iterable[tuple[torch.Tensor, Sequence[torch.Tensor]]]) -> None:
    """thetas: [(theta, [tensors of its shape])]. Version counters go up, so that a graph that saved one of them raises."""
    devices: dict[torch.device, list[tuple[torch.Tensor, Sequence[torch.Tensor]]]] = {}
    for theta, state in thetas:
        if not all(t.is_contiguous() and t.dtype in COMPUTED and t.device == theta.device for t in (theta, *state)):
            for value in (*state, theta):  # an optimizer's own choice, such as 8-bit state
                value.masked_fill_((theta <= 0).to(value.device), 0)
            continue
        devices.setdefault(theta.device, []).append((theta, state))
    for group in devices.values():
        plain = [theta for theta, _ in group]
        state = [value for _, values in group for value in values]
        _bury_(plain, state, [number for number, (_, values) in enumerate(group) for _ in values])
        torch.autograd.graph.increment_version([*plain, *state])
