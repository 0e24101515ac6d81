"""Compiled code that has seen the model at its old sizes: what of it is known, when it is forgotten, when to warn of it."""

from __future__ import annotations

import gc
import sys
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.torch_version import TorchVersion

from .errors import warn
from .insides import graphs_compiled, recompile_limit
from .wrapped import unwrapped

if TYPE_CHECKING:
    from .companions.optimizers import Followed

# From here on dynamo guards on the sizes of parameters. Before, the backward of a graph from before a collection is stale.
GUARDS_SIZES = TorchVersion(torch.__version__) >= "2.13"


class Compiled:
    """model: as a collector was given it, in ``torch.compile``'s wrapper or not. optimizers: whose steps may be compiled."""

    def __init__(self, model: nn.Module, optimizers: Sequence[Followed] = ()) -> None:
        self._given, self._model, self._optimizers = model, unwrapped(model), optimizers
        self._known = self._warned = False
        self._searched = self._counted = graphs_compiled()
        self._sizes = 0  # that the model has had since graphs were forgotten, but for the first
        self._graphs: list[int] = []  # made for each of them
        self.is_known()

    def is_known(self) -> bool:
        """Whether the model, what holds it, or a step of its optimizers is compiled. Functions around it cannot be seen."""
        if not self._known:
            inside = any(is_compiled(m) for m in self._given.modules())
            self._known = inside or any(o.is_compiled for o in self._optimizers) or self._is_compiled_around()
            if self._known:
                warn_of_shared_code(self._model)
        return self._known

    def changed(self) -> str | None:
        """The model has another size: forget graphs that are stale or too many. What to warn of where that cannot be known."""
        made = max(graphs_compiled() - self._counted, 0)  # its user may have cleared the counter
        if self._sizes:
            self._graphs.append(made)
        self._sizes += 1
        last = self._graphs[-1] if self._graphs else 0
        # with the first size, among whose graphs may be anybody's, and the next one
        ahead = sum(self._graphs) + 2 * last
        limit, told = recompile_limit(), None
        if self._is_stale() or self.is_known() and ahead > limit:
            torch.compiler.reset()
            self._sizes, self._graphs = 0, []
        elif not self._known and not self._warned and sum(map(bool, self._graphs)) > 1 and ahead >= limit - 1:
            self._warned = True
            words = f"after each of {self._sizes - 1} collections code around the model was compiled anew"
            what = f"at recompile_limit={limit} graphs dynamo runs it uncompiled"
            told = f"{words}, and {what}; GarbageCollector(..., max_graphs=6) collects more at a time"
        self._counted = graphs_compiled()
        return told

    def _is_stale(self) -> bool:
        """Whether there may be graphs that do not look at sizes. A compiled step knows its parameters by identity alone."""
        if any(o.is_compiled for o in self._optimizers):
            return True
        return not GUARDS_SIZES and "torch._dynamo" in sys.modules

    def _is_compiled_around(self) -> bool:
        """By a wrapper that the collector was not given: 0.2 s among 350,000 objects, where something was compiled since."""
        if (
            graphs_compiled() == self._searched
            or torch.distributed.is_available()
            and torch.distributed.is_initialized()
        ):
            return False  # several processes have to know the same: what they were given
        self._searched = graphs_compiled()
        modules = (thing for thing in gc.get_objects() if issubclass(type(thing), nn.Module))
        return any(is_compiled(m) and any(inside is self._model for inside in m.modules()) for m in modules)


def is_compiled(module: nn.Module) -> bool:
    """By ``module.compile()``, or as the wrapper that ``torch.compile(module)`` gives."""
    return module._compiled_call_impl is not None or "_orig_mod" in module.__dict__.get("_modules", ())


def warn_of_shared_code(model: nn.Module) -> None:
    """Modules of one class that are compiled one by one have one code, and a graph each once their sizes differ."""
    kinds = Counter(type(m) for m in model.modules() if m._compiled_call_impl is not None)
    kind, count = max(kinds.items(), key=lambda item: item[1], default=(None, 0))
    if kind is not None and count > recompile_limit():
        words = f"{count} modules {kind.__name__} are compiled one by one: once their sizes differ each needs a graph of its own"
        warn(f"{words}, and dynamo keeps recompile_limit={recompile_limit()} of one code; compile the whole model")
