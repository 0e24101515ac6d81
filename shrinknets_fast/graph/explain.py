"""The network in words: every hub, who makes it, who reads it, whether it can shrink and, if not, the op to blame."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch

from .hub import Hub
from .network import Network
from .plan import dead_features
from .verdict import Verdict, judge


def explain(network: Network, hubs: Iterable[Hub], dead: Mapping[int, torch.Tensor]) -> str:
    """dead: {id(theta): bool mask} as it is now; what could shrink is judged as if every filter were dead."""
    possible = judge(network, {key: torch.ones_like(mask) for key, mask in dead.items()}, idle_too=False)
    died = dead_features(network, dead)
    return "\n".join(line for hub in hubs for line in describe(hub, possible, died))


def describe(hub: Hub, possible: Verdict, died: torch.Tensor) -> Iterator[str]:
    yield f"{hub.name}: {len(hub)} features, {int(died[hub.ids].sum())} dead, {state(hub, possible)}"
    if hub.makers:
        yield f"    made by {', '.join(hub.makers)}"
    if hub.readers:
        yield f"    read by {', '.join(hub.readers)}"


def state(hub: Hub, possible: Verdict) -> str:
    free = int(possible.removable[hub.ids].sum())
    if free == len(hub):
        return "can shrink"
    stuck = hub.ids[~possible.removable[hub.ids]]
    blame = [possible.reasons[int(i)] for i in possible.blame[stuck].unique() if int(i) >= 0]
    why = "; ".join(blame) or "nothing reads it"
    if not hub.filtered:
        why += " (no filter here)"
    return f"kept: {why}" if free == 0 else f"{free} can shrink, the others are kept: {why}"
