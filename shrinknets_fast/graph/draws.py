"""Random numbers that a trial draws: the same ones each time, and none of the user's."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def same_draws() -> Iterator[None]:
    """Seeds Python's, numpy's and torch's generators, of the CPU, and gives each its own state back."""
    numpy = sys.modules.get("numpy")
    before = random.getstate(), numpy and numpy.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            random.seed(0)
            if numpy:
                numpy.random.seed(0)
            torch.default_generator.manual_seed(0)
            yield
    finally:
        random.setstate(before[0])
        if numpy:
            numpy.random.set_state(before[1])
