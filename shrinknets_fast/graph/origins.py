"""Where the features that are left stood before anything was removed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from ..errors import ShrinkError
from .hub import Hub
from .plan import Plan


class Origins:
    """``at``: {name of a filter or hub: the first positions of its features, in their present order}."""

    def __init__(self, thetas: Mapping[str, torch.Tensor], hubs: Iterable[Hub]) -> None:
        self._thetas = thetas
        sizes = {**{hub.name: len(hub) for hub in hubs}, **{name: theta.numel() for name, theta in thetas.items()}}
        self.at = {name: torch.arange(size) for name, size in sizes.items()}

    def shrink(self, plan: Plan) -> None:
        kept = {id(t.tensor): t.keep[0] for t in plan.tensors if 0 in t.keep}
        keeps = {hub.name: hub.kept for hub in plan.hubs if hub.removed and hub.name not in self._thetas}
        keeps |= {name: kept[id(theta)] for name, theta in self._thetas.items() if id(theta) in kept}
        self.at |= {name: self.at[name][keep] for name, keep in keeps.items()}

    def follow(self, older: Origins) -> None:
        """Go on from another reading of the same model."""
        alike = {name: at for name, at in older.at.items() if len(at) == len(self.at.get(name, ()))}
        self.at |= {name: at for name, at in alike.items() if name in self.at}

    def load(self, saved: Mapping[str, torch.Tensor]) -> None:
        for name, at in saved.items():
            if name in self.at and len(at) != len(self.at[name]):
                what = f"{name} has {len(self.at[name])} features, the state was saved with {len(at)}"
                raise ShrinkError(f"load_state_dict: {what}; load the model with sn.load_state_dict first")
        self.at |= {name: at.cpu().clone() for name, at in saved.items() if name in self.at}

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self.at:
            raise ShrinkError(f"kept: {name!r} is no filter or hub, expected one of {', '.join(self.at) or 'none'}")
        return self.at[name].clone()
