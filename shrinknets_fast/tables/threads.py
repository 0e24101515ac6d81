"""On how many threads a table's network trains."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from ..training.device import SMALL


@contextlib.contextmanager
def few_threads(batch_size: int, weights: int) -> Iterator[None]:
    """One thread where a step is small, as it is faster then; the number of before afterwards."""
    threads = torch.get_num_threads()
    if 6 * batch_size * weights < SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
