"""What can be measured: a family yields cases; a case makes its providers and the check that their results must pass."""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from . import families

OURS = "shrinknets_fast"
FAMILIES = {}

# What a provider is to ours; the tables and charts are made from it.
# ours; path: one of our kernels by name; plain: what the ratio is against; yardstick: another such; rival; bound: bandwidth or
# arithmetic
ROLES = ("ours", "path", "plain", "yardstick", "rival", "bound")


class Unavailable(Exception):
    """A case cannot run here, for the reason given: it is left out, which is no error."""


@dataclass(frozen=True)
class Options:
    quick: bool = False
    device: torch.device = torch.device("cpu")
    data: str | None = None  # where torchvision's data sets lie
    epochs: int | None = None  # of end_to_end; None: the setting's own
    examples: int | None = None  # training images of end_to_end; None: all
    seed: int = 0


@dataclass(frozen=True)
class Provider:
    """One way of doing a case's work.

    run(state): timed; its result goes to the case's check. prepare(k): makes the state, untimed; None: the state is k,
    which counts up. checked: False for bounds, which do other work. more(): further fields of the row, untimed.
    """

    run: Callable
    role: str = "rival"
    prepare: Callable | None = None
    checked: bool = True
    more: Callable = dict

    def once(self):
        return self.run(0 if self.prepare is None else self.prepare(0))


@dataclass(frozen=True)
class Case:
    """make() -> (providers by name, check). A provider that cannot run here is the reason, as a string.

    check(name, result) -> bool. calls: per sample (1 where a run destroys its state); host: time the host's part too.
    least: repetitions, where each prepares for seconds. measure() -> {provider: fields of its row}, instead of make, for
    what times itself.
    """

    name: str
    make: Callable | None = None
    measure: Callable | None = None
    calls: int | None = None
    least: int | None = None
    host: bool = False
    fields: dict = field(default_factory=dict)


def needed(module):
    """The module of that name; :class:`Unavailable` where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Unavailable(f"{module.partition('.')[0]} is not installed") from error


def family(function):
    """Registers a generator of cases, ``function(options)``, under its name."""
    FAMILIES[function.__name__] = function
    return function


def load():
    """Import every file of bench/families, so that each has registered itself; {name: generator of cases}."""
    for module in pkgutil.iter_modules(families.__path__):
        importlib.import_module(f"{families.__name__}.{module.name}")
    return FAMILIES
