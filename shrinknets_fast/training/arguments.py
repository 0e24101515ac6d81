"""The arguments of ``train``: what they mean, what they default to, and which values are refused."""

import argparse
import math
import os
import sys

from .budget import add_targets

DATA = ("digits", "mnist", "fashion", "cifar10")
MODELS = ("mlp", "lenet5")
AMP = ("bf16", "fp16")
NOT_GIVEN = object()
# digits has 1,437 training images: smaller batches and more epochs give it the 2,700 steps it needs, in seconds.
EPOCHS = {"digits": 60}
BATCH_SIZE = {"digits": 32}
LAM = {"digits": 5e-3}
WIDTH = {"mlp": 500, "lenet5": 5000}  # where the paper's runs start

DESCRIPTION = """\
Train an oversized network that finds its size. With no arguments: scikit-learn's digits, 500-500 units, no network.

models:
  mlp     DEPTH hidden layers of WIDTH units: linear, ReLU, filter; then a linear layer
  lenet5  two 5x5 convolutions of 50 channels, each with ReLU, filter and 2x2 max-pooling, DEPTH dense layers of WIDTH
          units (1 by default), then a linear layer; images below 16x16 (digits) are padded by 2 in the convolutions
"""
EPILOG = """\
written to OUT:
  summary.json   test accuracy, sizes, parameters, time, latency, arguments and versions
  history.jsonl  one row per epoch and one per collection ("kind" says which)
  history.png    features per layer and the loss over the steps, collections marked
  plain.pt2      the folded network as a torch.export program for any batch size; loads without this package
  last.pt        the checkpoint: all that --resume goes on from; torch.load(..., weights_only=True)
  tensorboard/   events, with --tensorboard

last.pt and history.jsonl are replaced after each epoch (--save-every: more often), the others are written at the end. Each is
replaced in one piece, so a run that is killed loses the steps since its checkpoint and nothing else. --resume goes on from
OUT/last.pt with the run's arguments: repeat those that you gave, or none. --epochs, --device, --data-dir, --save-every, --compile
and --tensorboard may be given anew; any other that differs is refused. On the CPU the end is that of a run that nothing has
stopped, bit for bit. One run at a time writes into OUT.

several processes:
  torchrun --nproc-per-node 2 -m shrinknets_fast train ...
  Each has its share of every batch (--batch-size is that of all together); gloo on the CPU, nccl on GPUs, one for each.

Ctrl-C stops after the current step, writes all of these and exits with status 130. Bad input: one line, status 2.
"""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message):
        if os.environ.get("RANK", "0") == "0":  # torchrun gives all processes the same arguments
            print(f"{self.prog}: error: {' '.join(message.split())}", file=sys.stderr)
        raise SystemExit(2)


def number(convert, low, high, expected):
    """An argparse type: a finite number in [low, high); the message repeats what was given."""

    def parse(text):
        try:
            value = convert(text)
        except ValueError:
            value = math.nan
        if not low <= value < high:  # also refuses nan
            raise argparse.ArgumentTypeError(f"{text!r} is not {expected}")
        return value

    return parse


positive = number(float, math.ulp(0.0), math.inf, "a positive finite number")
not_negative = number(float, 0.0, math.inf, "a finite number of at least 0")
count = number(int, 1, 2**31, "an integer of at least 1")
width = number(int, 1, 10**7 + 1, "an integer from 1 to 10000000")
depth = number(int, 1, 1001, "an integer from 1 to 1000")
seed = number(int, 0, 2**63, "an integer of at least 0")


def add_arguments(parser):
    add = parser.add_argument
    add("--data", default="digits", choices=DATA, help="data set; default: digits")
    add("--model", default="mlp", choices=MODELS, help="default: mlp")
    add(
        "--lam", type=not_negative, help="weight of the penalty sum(max(0, theta)); default: 5e-3 for digits, else 1e-3"
    )
    add("--width", type=width, help="units per dense hidden layer at the start; default: 500 for mlp, 5000 for lenet5")
    add("--depth", type=depth, help="number of dense hidden layers; default: 2 for mlp, 1 for lenet5")
    add("--epochs", type=count, help="default: 60 for digits, else 20")
    add("--batch-size", type=count, help="default: 32 for digits, else 256")
    add("--lr", type=positive, default=1e-3, help="Adam's learning rate; default: 1e-3")
    add("--filter-lr", type=positive, help="learning rate of the filters; default: --lr")
    add("--weight-decay", type=not_negative, default=0.0, help="Adam's weight decay, on the weights only; default: 0")
    add(
        "--proximal",
        action="store_true",
        help="apply the penalty as a soft threshold after each step, not as a gradient",
    )
    add_targets(add, positive)
    add("--every", type=count, default=1, help="steps between two looks for dead features; default: 1")
    add("--align", type=count, help="keep layer sizes multiples of this; default: 1 (8 for half types on a GPU)")
    add("--seed", type=seed, default=0, help="default: 0")
    add("--device", help="cpu, cuda or cuda:N; default: cuda where there is one")
    add("--data-dir", default="data", help="where torchvision's data sets lie or are downloaded to; default: data")
    add("--out", help="folder for the results; default: runs/DATA-MODEL")
    add(
        "--no-collect",
        dest="collect",
        action="store_false",
        help="leave dead features in place, to see what removal saves",
    )

    add(
        "--save-every", type=count, metavar="STEPS", help="steps between two checkpoints; default: one after each epoch"
    )
    add("--resume", action="store_true", help="go on from OUT/last.pt")
    add(
        "--amp",
        nargs="?",
        const="bf16",
        choices=AMP,
        help="forward under torch.autocast: bf16 (what --amp alone means), or fp16 with loss scaling; default: float32",
    )
    add("--compile", action="store_true", help="torch.compile the forward; each collection costs a compilation")
    add("--tensorboard", action="store_true", help="scalars for TensorBoard into OUT/tensorboard")


def given_in(argv):
    """{name: value} of the arguments that stand in ``argv``, as opposed to defaults."""
    parser = Parser()
    add_arguments(parser)
    parser.set_defaults(**dict.fromkeys(vars(parser.parse_args([])), NOT_GIVEN))
    return {name: value for name, value in vars(parser.parse_args(argv)).items() if value is not NOT_GIVEN}


def with_defaults(arguments):
    """Fill in the defaults that depend on the data set and the model."""
    data, model = arguments.data, arguments.model
    found = {
        "lam": LAM.get(data, 1e-3),
        "width": WIDTH[model],
        "depth": 2 if model == "mlp" else 1,
        "epochs": EPOCHS.get(data, 20),
        "batch_size": BATCH_SIZE.get(data, 256),
        "filter_lr": arguments.lr,
        "out": f"runs/{data}-{model}",
    }
    for name, value in found.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    return arguments


def join_negative_values(argv):
    """``--lam -1e-3`` as ``--lam=-1e-3``: argparse takes -1e-3 and -inf for options and then cannot name the value."""
    joined: list[str] = []
    for token in argv:
        if joined and joined[-1].startswith("--") and "=" not in joined[-1] and is_negative_number(token):
            joined[-1] += f"={token}"
        else:
            joined.append(token)
    return joined


def is_negative_number(token):
    if not token.startswith("-"):
        return False
    try:
        float(token)
    except ValueError:
        return False
    return True
