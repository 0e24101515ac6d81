"""What failed, in one line: torch's first words, and the user's line."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch

LOUD = ("torch._subclasses.fake_tensor", "torch.fx.experimental.symbolic_shapes", "torch.export")
OURS = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]))


def shortened(error: BaseException) -> str:
    """The first lines of torch's message: what and where; the rest is advice for torch's own developers."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:300] or type(error).__name__


def blame(error: BaseException) -> str:
    """The innermost line of the user's code: the last one outside torch and this package."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(OURS)]
    frames = [f for f in frames if Path(f.filename).exists() and "copy.py" not in f.filename]
    return f" ({frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line})" if frames else ""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """For trials whose failure is an answer: no log of torch's, and no print of the graph so far (500 lines for 40 layers).

    What else was written to stderr, by the user's forward say, comes out at the end.
    """
    loggers = [(log := logging.getLogger(name), log.disabled) for name in LOUD]
    held, graph = io.StringIO(), ""
    try:
        for log, _ in loggers:
            log.disabled = True
        with contextlib.redirect_stderr(held):
            yield
    except Exception as error:
        graph = f"{error.partial_fx_graph}\n" if hasattr(error, "partial_fx_graph") else ""
        raise
    finally:
        for log, before in loggers:
            log.disabled = before
        sys.stderr.write(held.getvalue().replace(graph, "") if graph else held.getvalue())
