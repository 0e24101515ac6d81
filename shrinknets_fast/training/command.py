"""``train`` from its arguments to its files."""

import contextlib
from pathlib import Path

import torch

from ..errors import ShrinkError
from . import files, report, resume, tensorboard
from .arguments import with_defaults
from .data import load
from .device import choose_device, few_threads
from .loop import Trainer
from .models import build, weight_count
from .processes import processes
from .progress import Interrupt, Progress
from .refusal import Refusal, require
from .saving import CHECKPOINT, Saver

INTERRUPTED = 130  # 128 + SIGINT, as shells count


def train(arguments, given):
    """The exit status. Everything that can be refused is refused before the first file is written.

    given: {name: value} of the arguments that are no defaults.
    """
    with contextlib.ExitStack() as stack:
        world = stack.enter_context(processes())
        return Run(arguments, given, world, stack).run()


class Run:
    """One call of ``train``, by one process of ``world``; what has to be undone at its end is on ``stack``."""

    def __init__(self, arguments, given, world, stack):
        self.world, self.stack = world, stack
        with world.agreed():
            self.tqdm = require("tqdm", "tqdm", "train").tqdm
            self.figure_class = require("matplotlib.figure", "matplotlib", "train").Figure
            self.arguments = with_defaults(arguments)
            self.checkpoint = self.read(given)
            device = choose_device(self.arguments.device, world)
            self.arguments.device = device.type if world.size > 1 else str(device)
            files.check_folder(self.arguments.out)
            self.writer = tensorboard.needed() if self.arguments.tensorboard else None
        data = world.in_turn(lambda: load(self.arguments.data, self.arguments.data_dir))
        with world.agreed():
            torch.manual_seed(self.arguments.seed)
            model = build(self.arguments, data.images.shape[1:]).to(device)
            self.before = weight_count(model)
            with self.fitting():
                self.trainer = Trainer(model, data.to(device), self.arguments, world, self.checkpoint)
            if self.checkpoint is not None:
                resume.check_end(self.trainer, self.path)
        with world.agreed():
            folder = stack.enter_context(files.own_folder(self.arguments.out)) if world.rank == 0 else None
            self.saver = Saver(folder)

    @property
    def path(self):
        return Path(self.arguments.out) / CHECKPOINT

    def read(self, given):
        """The checkpoint to go on from, which rank 0 reads for all; its arguments are taken over."""
        if not self.arguments.resume:
            return None
        with self.world.agreed():
            checkpoint = resume.read(self.path) if self.world.rank == 0 else None
        checkpoint = self.world.from_first(checkpoint)
        resume.take_arguments(self.arguments, given, checkpoint, self.path)
        return checkpoint

    def fitting(self):
        return contextlib.nullcontext() if self.checkpoint is None else resume.fitting(self.path)

    def run(self):
        trainer, saver = self.trainer, self.saver
        total = trainer.steps_per_epoch * self.arguments.epochs
        with Interrupt() as interrupt, few_threads(self.arguments, self.before):
            with Progress(self.tqdm, total, trainer.step_count, shown=saver.folder is not None) as progress:
                self.steps(progress, interrupt)
            interrupted = trainer.epochs_done < self.arguments.epochs
            if saver.folder is not None:
                summary = saver.end(trainer, self.figure_class, self.before, interrupted)
                print(report.table(summary, saver.folder))
        return INTERRUPTED if interrupted else 0

    def steps(self, progress, interrupt):
        trainer, saver, board = self.trainer, self.saver, None
        if self.writer is not None and saver.folder is not None:
            resumed = self.checkpoint is not None
            board = self.stack.enter_context(tensorboard.Board(self.writer, saver.folder, trainer, resumed))
        try:
            trainer.run(progress, interrupt, lambda: saver.checkpoint(trainer), board)
        except (ShrinkError, torch.OutOfMemoryError) as error:
            kept = f"the last good checkpoint is {self.path}" if self.path.exists() else "there is no checkpoint yet"
            place = f"epoch {trainer.epoch}, step {trainer.step_count}"
            refusal = Refusal(f"training stopped in {place}: {error}; {kept}")
            refusal.said_elsewhere = self.world.rank > 0 and isinstance(error, ShrinkError)  # which all ranks raise
            raise refusal from error
        except RuntimeError as error:
            if not (self.arguments.compile and type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))):
                raise
            raise Refusal(f"--compile: torch.compile failed, train without it: {str(error)[:300]}") from error
