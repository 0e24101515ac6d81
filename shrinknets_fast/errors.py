"""The one exception type of the package, and its way to warn."""

from __future__ import annotations

import sys
import warnings
from types import FrameType


class ShrinkError(ValueError):
    """A bad argument, or a network that cannot be handled; the message names the module and the values.

    Whoever raises it has changed nothing.
    """


def warn(message: str) -> None:
    """A UserWarning at the line of the caller's code, however deep in this package it is noticed."""
    frame: FrameType | None = sys._getframe()
    own, depth, level = __name__.partition(".")[0], 0, 1
    while frame is not None and (root := frame.f_globals.get("__name__", "").partition(".")[0]) in (own, "torch"):
        depth += 1
        level = depth + 1 if root == own else level  # torch's frames only where one of ours lies behind them
        frame = frame.f_back
    warnings.warn(message, stacklevel=level)
