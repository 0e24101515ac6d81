"""Whether the user's forward survives that features leave, and which of its attributes have to follow."""

from __future__ import annotations

import torch
from torch import nn

from ..errors import ShrinkError
from .balance import with_slots
from .follow import DONE, Search
from .followed import Followed, follow
from .network import Network
from .plan import tensor_plans
from .rehearse import Rehearsal


class Trials:
    """On the stage of ``rehearsal``."""

    def __init__(self, model: nn.Module, network: Network, rehearsal: Rehearsal) -> None:
        self.model, self.network, self.rehearsal = model, network, rehearsal
        self._search = Search(model, network)

    def failure(self, ids: torch.Tensor, at: str) -> str | None:
        """The error if a fake copy without these features does not run, or does not do the same; else None.

        Attributes that make it run are followed from now on.
        """
        gone = torch.zeros(self.network.features.count, dtype=torch.bool)
        gone[ids] = True
        gone = with_slots(self.network.features.balances, gone)
        why = self._error(gone, at)
        if why is not None:
            found = self._search(gone, lambda some: self._progress(gone, at, some))
            if not found:
                return why
            follow(self.model, found)
            self.rehearsal.sizes.followed += found
        return None

    def _error(self, gone: torch.Tensor, at: str) -> str | None:
        try:
            plans = tensor_plans(self.network, gone)
            self.rehearsal.try_once(self.model, plans, at, self.network.splits.views(gone))
        except ShrinkError as error:
            return str(error)
        return None

    def _progress(self, gone: torch.Tensor, at: str, followed: list[Followed]) -> int:
        """How many calls the forward makes until it fails, where these attributes follow."""
        sizes = self.rehearsal.sizes
        before = sizes.followed
        sizes.followed, self.rehearsal.seen = [*before, *followed], {}
        try:
            return DONE if self._error(gone, at) is None else sum(len(n.calls) for n in self.rehearsal.seen.values())
        finally:
            sizes.followed = before
