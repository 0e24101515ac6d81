"""All features of a model from the smallest theta to the largest: who dies first, and who may not."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch

from .watch import Filters


class Seen:
    """Thetas at one moment, on the host. ``alive``: how many."""

    def __init__(self, thetas: Mapping[int, torch.Tensor]) -> None:
        self._sizes = {key: theta.numel() for key, theta in thetas.items()}
        self._values = torch.cat(list(thetas.values()))
        self._dead = self._values <= 0
        rank = self._values.clone()
        start = 0
        for size in self._sizes.values():  # a layer's last feature goes after all others, unless it is a gate
            if size > 1:
                rank[start + int(rank[start : start + size].argmax())] += math.inf
            start += size
        rank[self._dead] = -1
        self._order = rank.argsort(stable=True)[int(self._dead.sum()) :]
        self.alive = len(self._order)

    def dead(self, more: int = 0) -> dict[int, torch.Tensor]:
        """{id(theta): mask} of what is dead and of the ``more`` that go next."""
        mask = self._dead.clone()
        mask[self._order[:more]] = True
        return dict(zip(self._sizes, mask.split(list(self._sizes.values())), strict=True))

    def value(self, count: int) -> float:
        """The largest theta of the ``count`` that go next."""
        return float(self._values[self._order[:count]].max())


class Ranking:
    def __init__(self, filters: Filters) -> None:
        self._filters: dict[int, tuple[str, torch.Tensor]] = dict(filters)
        self._free: dict[int, torch.Tensor] = {}  # id(theta) -> mask of what may die, or has
        self._floors: dict[int, torch.Tensor] = {}

    def follow(self, filters: Filters) -> None:
        """A branch may have left, with its filters."""
        self._filters = dict(filters)

    def look(self) -> Seen:
        """Waits for each device once."""
        places: dict[torch.device, list[int]] = {}
        for key, (_, theta) in self._filters.items():
            places.setdefault(theta.device, []).append(key)
        found: dict[int, torch.Tensor] = {}
        for keys in places.values():
            thetas = [self._filters[key][1].detach() for key in keys]
            values = torch.cat([theta.double() for theta in thetas]).cpu()
            found.update(zip(keys, values.split([theta.numel() for theta in thetas]), strict=True))
        return Seen({key: found[key] for key in self._filters})

    def protect(self, free: Mapping[int, torch.Tensor]) -> None:
        """free: {id(theta): mask} of what may die, or has."""
        self._free, self._floors = dict(free), {}

    def is_stale(self, among: set[int]) -> bool:
        """Whether sizes have changed since, of thetas with these ids."""
        found = ((key, theta) for key, (_, theta) in self._filters.items() if key in among)
        return any(key not in self._free or len(self._free[key]) != theta.numel() for key, theta in found)

    def floors(self, floor: float, among: set[int]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """(thetas, their floors) of the ids ``among``: ``floor`` for the protected, -inf for the others."""
        thetas = {key: theta for key, (_, theta) in self._filters.items() if key in among}
        for key, theta in thetas.items():
            if key not in self._floors or self._floors[key].device != theta.device:
                values = torch.full((theta.numel(),), floor, dtype=theta.dtype)
                self._floors[key] = values.masked_fill(self._free[key], -math.inf).to(theta.device)
        return list(thetas.values()), [self._floors[key] for key in thetas]

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {name: self._free[key] for key, (name, _) in self._filters.items() if key in self._free}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        self.protect({key: state[name].cpu() for key, (name, _) in self._filters.items() if name in state})


def first_fitting(fits: Callable[[int], bool], guess: int, most: int) -> int:
    """The smallest count from 0 to ``most`` that fits, where all larger ones do; ``most`` if none does. Quick near ``guess``."""
    low, high, stride = -1, most, 1  # low does not fit, high does
    probe = min(max(guess, 0), most)
    while high - low > 1:
        if not low < probe < high:
            probe = (low + high) // 2
        if fits(probe):
            high, probe = probe, probe - stride
        else:
            low, probe = probe, probe + stride
        stride *= 2
    return high
