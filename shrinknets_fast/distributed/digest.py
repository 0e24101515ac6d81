"""What ranks compare, in two numbers: one of words, one of tensors, which never leaves their device."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import torch

from ..graph.network import Network
from ..graph.plan import Plan

Facts = dict[str, str]
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def words(value: object) -> str:
    """A value in words that are the same in every process. Tensors, which may be long, by a digest of their bytes."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {words(item)}" for key, item in value.items())
    if isinstance(value, torch.Tensor):
        return hashlib.blake2b(value.cpu().contiguous().numpy().tobytes(), digest_size=4).hexdigest()
    return str(value)


def facts_about(network: Network, options: Mapping[str, object]) -> Facts:
    """What a collector brings to a collection, to be the same on all ranks, beside thetas."""
    shapes = {bound.names[0]: tuple(bound.tensor.shape) for bound in network.bound.values()}
    return {name: words(value) for name, value in {**options, "shapes": shapes}.items()}


def facts_of(plan: Plan, branches: Iterable[str]) -> Facts:
    """What a collection removes, to be the same on all ranks: where, how many, and which. ``plan`` without the branches."""
    facts = {f"what leaves {hub.name!r}": f"{hub.removed} features ({words(hub.kept)})" for hub in plan.hubs}
    return {
        **facts,
        "branches that leave": words(list(branches)),
        "tensors": words({t.name: t.shape for t in plan.tensors}),
    }


def digest_of_words(facts: Facts) -> int:
    """64 bits, with their sign; Python's own hash differs between processes."""
    return int.from_bytes(hashlib.blake2b(repr(facts).encode(), digest_size=8).digest(), "little", signed=True)


class TensorDigest:
    """``sum_i bits_i w_i mod 2^64`` over all entries, with odd random weights w: one entry that differs always shows, several do
    but for a chance of 2^-63."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._weights = torch.empty(0, dtype=torch.int64, device=device)

    @torch.no_grad()
    def __call__(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """One int64 on the device, which the host does not wait for."""
        kinds: dict[torch.dtype, list[torch.Tensor]] = {}
        for tensor in tensors:
            kinds.setdefault(tensor.dtype, []).append(tensor.detach().to(self._device, non_blocking=True).flatten())
        parts = [torch.cat(alike).view(INTEGERS[dtype.itemsize]).long() for dtype, alike in kinds.items()]
        if not parts:
            return torch.zeros(1, dtype=torch.int64, device=self._device)
        bits = torch.cat(parts)
        return (bits * self._weights_for(len(bits))).sum(0, keepdim=True)

    def _weights_for(self, count: int) -> torch.Tensor:
        if len(self._weights) < count:
            generator = torch.Generator().manual_seed(0)
            drawn = torch.randint(-(2**63), 2**63 - 1, (count,), generator=generator) | 1
            self._weights = drawn.to(self._device)
        return self._weights[:count]
