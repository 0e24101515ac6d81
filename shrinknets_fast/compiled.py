"""Compiled code that has seen the model at its old sizes."""

from __future__ import annotations

import sys

import torch
from torch import nn
from torch.torch_version import TorchVersion

# From here on dynamo guards on the sizes of parameters. Before, the backward of a graph from before a collection is stale.
GUARDS_SIZES = TorchVersion(torch.__version__) >= "2.13"


class Compiled:
    """model: as a collector was given it, in ``torch.compile``'s wrapper or not."""

    def __init__(self, model: nn.Module) -> None:
        self._known = any(m._compiled_call_impl is not None or hasattr(m, "_orig_mod") for m in model.modules())

    def reset(self) -> None:
        """Forget compiled graphs where the model is compiled, or something around it may be that does not look at sizes."""
        if self._known or not GUARDS_SIZES and "torch._dynamo" in sys.modules:
            torch.compiler.reset()
