"""The one exception type of the package, and its way to warn."""

import sys
import warnings


class ShrinkError(ValueError):
    """A bad argument, or a network that cannot be handled; the message names the module and the values.

    Whoever raises it has changed nothing.
    """


def warn(message: str) -> None:
    """A UserWarning at the line of the caller's code, however deep in this package it is noticed."""
    own, frame, depth, level = __name__.partition(".")[0], sys._getframe(), 0, 1
    while frame is not None and (root := frame.f_globals.get("__name__", "").partition(".")[0]) in (own, "torch"):
        depth += 1
        level = depth + 1 if root == own else level  # torch's frames only where one of ours lies behind them
        frame = frame.f_back
    warnings.warn(message, stacklevel=level)
