"""Random numbers that a trial draws: the same ones each time, and none of the user's."""

import contextlib
import random
import sys

import torch


@contextlib.contextmanager
def same_draws():
    """Seeds Python's, numpy's and torch's generators, of the CPU, and gives each its own state back."""
    numpy = sys.modules.get("numpy")
    before = random.getstate(), numpy and numpy.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            random.seed(0)
            if numpy:
                numpy.random.seed(0)
            torch.random.default_generator.manual_seed(0)
            yield
    finally:
        random.setstate(before[0])
        if numpy:
            numpy.random.set_state(before[1])
