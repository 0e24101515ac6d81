"""Parameters of which each rank holds a part."""

from __future__ import annotations

import sys
from typing import Any


def is_sharded(tensor: Any) -> bool:
    sharding = sys.modules.get("torch.distributed.tensor")  # 0.7 s to import, and not in every build
    return sharding is not None and isinstance(tensor, sharding.DTensor)


def asked_by_torch() -> bool:
    """Whether torch.distributed called the caller: fully_shard swaps parameters and reads them as attributes."""
    return sys._getframe(2).f_globals.get("__name__", "").startswith("torch.distributed.")
