"""Where training runs, and on how many threads."""

import contextlib

import torch

from .refusal import Refusal

SMALL = 5e8  # floating-point operations: some 10 ms on one core


def choose_device(name, world):
    """Several processes of one machine have a GPU each."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise Refusal(f"--device {name!r} is not cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise Refusal(f"--device {name!r} is not cpu, cuda or cuda:N")
    if world.size > 1 and device.type == "cuda":
        if device.index is not None:
            raise Refusal(
                f"--device {name!r} is one GPU for {world.size} processes; give --device cuda: each takes its own"
            )
        device = torch.device("cuda", world.local)
    there = torch.cuda.device_count() if device.type == "cuda" else 1
    if (device.index or 0) >= there:
        raise Refusal(f"--device {str(device)!r} is not available: torch {torch.__version__} sees {there} CUDA devices")
    if world.size > 1 and device.type == "cuda":
        torch.cuda.set_device(device)
    return device


@contextlib.contextmanager
def few_threads(arguments, weights):
    """One thread where a step is small: as fast on idle cores (4 s for digits), and 4 s against 190 s on busy ones."""
    threads = torch.get_num_threads()
    operations = 6 * arguments.batch_size * weights  # of a step, where no convolution uses a weight more than once
    if arguments.model == "mlp" and operations < SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
