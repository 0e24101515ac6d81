"""A filtered producer, an op, a reader: do the dead leave, does the output stay, is the op blamed?"""

import re
import warnings

import torch
from networks import outputs
from torch import nn

import shrinknets_fast as sn


class Between(nn.Module):
    """x -> filtered layer -> middle -> reader. The reader is as wide as what the middle gives along ``dim``."""

    def __init__(self, first, middle, x, dim=1, reader=None):
        super().__init__()
        self.first = first.double()
        self.middle = middle.double() if isinstance(middle, nn.Module) else middle
        self.to_last = dim
        shape = self.middle(self.first(x)).shape
        self.reader = (reader or nn.Linear(shape[dim], 3)).double()

    def forward(self, x):
        y = self.middle(self.first(x))
        if isinstance(self.reader, nn.Linear):
            y = y.movedim(self.to_last, -1)
        return self.reader(y)


def image_case(middle, *, width=8, dim=1, reader=None, size=6):
    """(model, x) with a filtered convolution of ``width`` channels in front."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    first = sn.FilteredConv2d(3, width, 3, padding=1, init=0.7)
    return Between(first, middle, x, dim, reader), x


def row_case(middle, *, width=8, dim=-1, reader=None):
    """(model, x) with a filtered linear layer of ``width`` features in front, on (2, 5, 4)."""
    torch.manual_seed(0)
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    return Between(sn.FilteredLinear(4, width, init=0.7), middle, x, dim, reader), x


def after(model, x, dead=(1, 2, 5, 6), warns=False):
    """Kill these features of the first layer, collect, check exactness. Returns (features removed, explain() before)."""
    with torch.no_grad():
        model.first.theta[list(dead)] = -0.5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if warns else "error")
        gc = sn.GarbageCollector(model, x)
    before, text = outputs(model, x), gc.explain()
    removed = gc.collect().removed
    for new, old in zip(outputs(model, x), before, strict=True):
        assert float((new - old).abs().max()) <= 1e-12 * max(float(old.abs().max()), 1.0)
    model(x).square().sum().backward()
    gc.plan()  # a rule that took a size from the trace fails at today's
    return sum(removed.values()), text


def leaves(case, count=4, **options):
    removed, text = after(*case, **options)
    assert removed == count, text


def stays(case, reason, **options):
    removed, text = after(*case, **options)
    assert removed == 0, text
    assert re.search(reason, text), text
