"""When to look at the filters, and when enough is dead for a collection."""

from __future__ import annotations

from collections.abc import Mapping

from .watch import Filters

PATIENCE = 100  # looks between questions whether features wait for copies in vain
LEFT = 0.05  # of the features, where a ladder of sizes ends


def rung(graphs: int) -> float:
    """The share of all features that has to be newly dead so that 95% of them leave within ``graphs - 1`` collections."""
    return float(1 - LEFT ** (1 / (graphs - 1)))


class Pace:
    """``steps`` so far; ``seen``: {id(theta): dead features that the last collection left}, which are no reason for another."""

    def __init__(self) -> None:
        self.steps = 0
        self.seen: dict[int, int] = {}

    def is_look(self, every: int) -> bool:
        return not self.steps % every

    def is_long(self, every: int) -> bool:
        return not self.steps % (PATIENCE * every)

    def is_enough(self, counts: Mapping[int, tuple[int, int]], min_dead: float) -> bool:
        """Whether this fraction of some filter has died since. counts: {id(theta): (dead, all)}"""
        return any(count > 0 and count >= min_dead * size for count, size in self._new(counts))

    def is_share(self, counts: Mapping[int, tuple[int, int]], share: float) -> bool:
        """Whether this fraction of all filters' features together has."""
        new = self._new(counts)
        return sum(max(count, 0) for count, _ in new) >= share * sum(size for _, size in new)

    def _new(self, counts: Mapping[int, tuple[int, int]]) -> list[tuple[int, int]]:
        return [(dead - self.seen.get(key, 0), size) for key, (dead, size) in counts.items()]

    def seen_by_name(self, filters: Filters) -> dict[str, int]:
        return {name: self.seen[key] for key, (name, _) in filters.items() if key in self.seen}

    def set_seen_by_name(self, filters: Filters, seen: Mapping[str, int]) -> None:
        self.seen = {key: seen[name] for key, (name, _) in filters.items() if name in seen}
