"""A library for the census with one model of each fate; as a program: its census, run twice, with rows in the file given."""

import os
import sys
import time

import torch
from torch import nn

from bench.census import libraries, runner


class Branching(nn.Module):
    """What runs is decided by a value."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(x) if x.sum() > 0 else x


def network():
    return nn.Sequential(nn.Linear(6, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Dropout(0.5), nn.Linear(20, 3))


def hang():
    time.sleep(600)


def end():
    os._exit(3)


MODELS = {
    "network": lambda: (network(), torch.randn(8, 6)),
    "layer": lambda: (nn.Linear(4, 3), torch.randn(2, 4)),
    "branching": lambda: (Branching(), torch.randn(2, 4)),
    "broken": lambda: (nn.Linear(4, 3), torch.randn(2, 5)),
    "hangs": hang,
    "ends": end,
}


def make(name):
    return MODELS[name]()


if __name__ == "__main__":
    libraries.LIBRARIES["made_up"] = ("census_models", "torch")
    libraries.LIBRARIES["absent"] = ("census_models", "no_such_module")
    chosen = [("absent", "network"), *(("made_up", name) for name in MODELS if name != "hangs")]
    for again in (False, False, True):
        print("run")
        runner.run(chosen[:2] if again else chosen, out=sys.argv[1], jobs=2, again=again)
    print("run")
    runner.run([("made_up", "hangs")], out=sys.argv[1], limit=1)
