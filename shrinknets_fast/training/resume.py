"""``--resume``: the checkpoint that a run goes on from, and the arguments it goes on with."""

import contextlib
import zipfile

import torch

from ..errors import ShrinkError
from .refusal import Refusal

# What changes neither the network nor what it learns from, but how far, where and how fast: these may be given anew.
MAY_DIFFER = ("epochs", "out", "device", "data_dir", "save_every", "compile", "tensorboard", "resume")
KEYS = {
    "model",
    "optimizer",
    "collector",
    "proximal",
    "budget",
    "scaler",
    "history",
    "order",
    "random",
    "step",
    "arguments",
}


def read(path):
    """The checkpoint, on the CPU. A checksum stands for every part: a flipped bit would be trained on otherwise."""
    if not path.is_file():
        raise Refusal(f"--resume: there is no checkpoint {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken is not None:
            raise ValueError(f"the checksum of {broken} is another")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zipfile and unpickling raise whatever they run into
        raise Refusal(f"--resume: {path} is damaged: {type(error).__name__}: {str(error)[:200]}") from error
    missing = KEYS - checkpoint.keys() if isinstance(checkpoint, dict) else KEYS
    if missing:
        raise Refusal(f"--resume: {path} is no checkpoint of this command: it lacks {', '.join(sorted(missing))}")
    return checkpoint


def take_arguments(arguments, given, checkpoint, path):
    """Those of the checkpoint, where none is ``given``; one that differs is refused, unless it may."""
    stored = checkpoint["arguments"]
    for name, value in given.items():
        if name not in MAY_DIFFER and value != stored.get(name):
            now, then = spelled(name, value), spelled(name, stored.get(name))
            raise Refusal(f"--resume: {now} is given, {path} was trained {then}; give the same, or leave out --resume")
    for name, value in stored.items():
        if name not in given and name != "out":
            setattr(arguments, name, value)


def spelled(name, value):
    """As on the command line."""
    flag = "--no-collect" if name == "collect" else f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return f"{'with' if value == (name != 'collect') else 'without'} {flag}"
    return f"without {flag}" if value is None else f"with {flag} {value}"


@contextlib.contextmanager
def fitting(path):
    """Around the making of a trainer from the checkpoint: of another network, or of other data, it is refused."""
    try:
        yield
    except (ShrinkError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise Refusal(f"--resume: {path} does not fit: {error}") from error


def check_end(trainer, path):
    total = trainer.arguments.epochs * trainer.steps_per_epoch
    if trainer.step_count > total:
        here = f"{path} is at step {trainer.step_count}, in epoch {trainer.epoch}"
        raise Refusal(f"--resume: --epochs {trainer.arguments.epochs} ends at step {total}, {here}")
