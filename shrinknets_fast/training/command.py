"""``train`` from its arguments to its files."""

import contextlib
import json

import torch

from ..errors import ShrinkError
from . import files, picture, plain, report
from .arguments import with_defaults
from .data import load
from .latency import latency
from .loop import Trainer
from .models import build, weight_count
from .progress import Interrupt, Progress
from .refusal import Refusal, require

INTERRUPTED = 130  # 128 + SIGINT, as shells count
SMALL = 5e8  # floating-point operations: some 10 ms on one core


def train(arguments):
    """The exit status. Everything that can be refused is refused before the first file is written."""
    arguments = with_defaults(arguments)
    tqdm = require("tqdm", "tqdm", "train").tqdm
    figure_class = require("matplotlib.figure", "matplotlib", "train").Figure
    device = choose_device(arguments.device)
    arguments.device = str(device)
    files.check_folder(arguments.out)
    data = load(arguments.data, arguments.data_dir)
    torch.manual_seed(arguments.seed)
    model = build(arguments, data.images.shape[1:]).to(device)
    before = weight_count(model)
    trainer = Trainer(model, data.to(device), arguments)
    out = files.make_folder(arguments.out)
    with Interrupt() as interrupt, few_threads(arguments, before):
        with Progress(tqdm, trainer.steps_per_epoch * arguments.epochs) as progress:
            run(trainer, progress, interrupt, out)
        summary = finish(trainer, figure_class, out, before, bool(interrupt))
    print(report.table(summary, out))
    return INTERRUPTED if interrupt else 0


def choose_device(name):
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise Refusal(f"--device {name!r} is not cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise Refusal(f"--device {name!r} is not cpu, cuda or cuda:N")
    there = torch.cuda.device_count() if device.type == "cuda" else 1
    if (device.index or 0) >= there:
        raise Refusal(f"--device {name!r} is not available: torch {torch.__version__} sees {there} CUDA devices")
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


def run(trainer, progress, interrupt, out):
    def save():
        trainer.collector.trim(waste=0)  # a file holds whole storages
        files.replace(out / "last.pt", lambda file: torch.save(trainer.state_dict(), file))
        rows = "".join(json.dumps(row) + "\n" for row in trainer.history.rows)
        files.replace_text(out / "history.jsonl", rows)

    try:
        trainer.run(progress, interrupt, save)
    except (ShrinkError, torch.OutOfMemoryError) as error:
        kept = out / "last.pt"
        where = f"the last good checkpoint is {kept}" if kept.exists() else "there is no checkpoint yet"
        place = f"epoch {trainer.epoch}, step {trainer.step_count}"
        raise Refusal(f"training stopped in {place}: {error}; {where}") from error


def finish(trainer, figure_class, out, parameters_before, interrupted):
    """Write what only the end of training knows."""
    images = trainer.data.test_images
    network = plain.export(trainer.model, images, out / "plain.pt2")
    difference = plain.max_abs_diff(trainer.model, out / "plain.pt2", images)
    summary = report.summarise(trainer, network, difference, parameters_before, interrupted)
    summary["latency_ms"] = latency(trainer.arguments, images.shape[1:], network, images.device)
    picture.draw(figure_class, trainer.history, summary, out / "history.png")
    files.replace_text(out / "summary.json", json.dumps(summary, indent=2) + "\n")
    return summary
