"""What stands around a model, as a collector sees it: its wrappers, and the ranks that train it with this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from ..companions import Companions
from ..errors import ShrinkError
from ..graph.plan import Plan
from ..graph.reading import Reading
from ..watch import Watch
from ..work import Prepared, Work
from ..wrapped import unwrapped
from . import ddp, fsdp
from .digest import Facts
from .ranks import Alone, Ranks, Several
from .sharded import ShardedReading, ShardedWork, Sharding
from .wrappers import Wrappers, is_distributed


class Around:
    """``module``: the model itself. model: as the collector was given it, in a wrapper or not.

    watch(), facts(): what ranks compare.
    """

    def __init__(self, model: nn.Module, watch: Callable[[], Watch], facts: Callable[[], Facts]) -> None:
        self.module = unwrapped(model)
        self.wrappers = Wrappers(model)
        self._watch, self._facts = watch, facts
        self._ranks: Ranks = Alone(watch)
        self._searched = False
        self.sharding = Sharding(self.module) if fsdp.units(self.module) else None
        if self.sharding is not None:
            self._ranks = Several(watch, facts, self.sharding.group, self.sharding.device)
        elif self.wrappers.given:
            self._meet()

    @property
    def whole(self) -> nn.Module:
        """What can be read: the model, or a copy of it where this rank has parts only."""
        return self.module if self.sharding is None else self.sharding.twin

    def reading(self, args: tuple[Any, ...], kwargs: dict[str, Any], companions: Companions) -> Reading:
        if self.sharding is None:
            return Reading(self.module, args, kwargs, companions.thetas)
        if companions.copies:
            raise ShrinkError(
                "GarbageCollector: follow is given, and copies of what fully_shard has sharded cannot shrink"
            )
        return ShardedReading(self.sharding, args, kwargs)

    def work(self, reading: Any, companions: Companions, plan: Plan) -> Prepared:
        return (Work if self.sharding is None else ShardedWork)(reading, companions, plan)

    def ranks(self, search: bool = False) -> Ranks:
        """Who has to agree now. Wrappers that were not given are looked for once, and on demand."""
        if self.sharding is None and is_distributed() and not self.wrappers.given and (search or not self._searched):
            self._searched = True
            self.wrappers.find()
            self._meet()
        for wrapper in self.wrappers:
            ddp.check_not_joining(wrapper)
        return self._ranks

    def unsettle(self) -> None:
        """What the ranks have agreed on may have changed."""
        if isinstance(self._ranks, Several):
            self._ranks.unsettled = True

    def _meet(self) -> None:
        self.wrappers.check()
        for wrapper in self.wrappers:
            if not isinstance(self._ranks, Several):
                self._ranks = Several(self._watch, self._facts, wrapper.process_group, wrapper.device)
