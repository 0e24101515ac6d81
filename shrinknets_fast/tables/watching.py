"""A progress bar over all runs of a fit."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

import torch

from ..training.progress import IN_A_LOG, ON_A_TERMINAL
from ..training.refusal import require
from .search import Watch
from .training import Run

SHARE = 50  # looks per run: each waits for the loss


@contextlib.contextmanager
def no_bar(runs: int) -> Iterator[Watch]:
    yield lambda words: None


@contextlib.contextmanager
def Bar(runs: int) -> Iterator[Watch]:
    """runs: how many there will be, each counted as one unit."""
    tqdm = require("tqdm", "tqdm", "verbose=True").tqdm
    form = "{percentage:3.0f}%|{bar:20}| {n:.1f}/{total_fmt} runs [{elapsed}<{remaining}]{postfix}"
    interval = ON_A_TERMINAL if sys.stderr.isatty() else IN_A_LOG
    with tqdm(total=runs, bar_format=form, mininterval=interval) as bar:
        finished = 0

        def watch(words: str) -> Callable[[Run, torch.Tensor], None]:
            nonlocal finished
            begun = finished
            finished += 1

            def after_step(run: Run, loss: torch.Tensor) -> None:
                if run.step_count % max(1, run.total // SHARE) == 0 or run.step_count == run.total:
                    bar.set_postfix_str(f"{words}, loss {loss.item():.4f}, alive {sum(run.alive())}", refresh=False)
                    bar.update(begun + run.step_count / run.total - bar.n)

            return after_step

        yield watch
        bar.update(runs - bar.n)
