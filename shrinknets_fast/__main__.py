"""The command line: ``python -m shrinknets_fast`` with ``train``, ``fit``, ``predict`` or ``info``."""

import sys

import torch

from .errors import ShrinkError
from .tables.arguments import FIT, FIT_END, PREDICT, add_fit, add_predict
from .training.arguments import DESCRIPTION, EPILOG, Parser, add_arguments, given_in, join_negative_values
from .training.versions import versions

PROGRAM = "python -m shrinknets_fast"


def parser():
    top = Parser(prog=PROGRAM, description="Networks that find their own size while they train.")
    commands = top.add_subparsers(dest="command", required=True, metavar="{train,fit,predict,info}")
    train = commands.add_parser("train", description=DESCRIPTION, epilog=EPILOG, help="train a network that shrinks")
    add_arguments(train)
    table = commands.add_parser(
        "fit", description=FIT, epilog=FIT_END, help="fit a network that sizes itself to a CSV file"
    )
    add_fit(table)
    add_predict(commands.add_parser("predict", description=PREDICT, help="predict rows with what fit wrote"))
    about = commands.add_parser("info", help="print versions, devices and how this installation was built")
    about.add_argument("--dispatch", action="store_true", help="print which path a layer takes for which shape instead")
    return top


def info(arguments, argv):
    """Everything a bug report needs."""
    if arguments.dispatch:
        from .dispatch import table

        print(table())
        return 0
    from .build_info import build_info

    for name, value in versions().items():
        print(f"{name:<16} {value or 'not installed'}")
    for name, value in build_info().items():
        print(f"{name:<16} {value}")
    print(f"{'cpu':<16} {torch.get_num_threads()} threads")
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        print(f"{f'cuda:{index}':<16} {torch.cuda.get_device_name(index)}, compute capability {major}.{minor}")
    for path in sorted(torch.ops.loaded_libraries):
        print(f"{'library':<16} {path}")
    return 0


def train(arguments, argv):
    from .training.command import train  # tqdm, matplotlib and the data sets are only needed here

    return train(arguments, given_in(argv))


def fit(arguments, argv):
    from .tables.fitting import fit  # scikit-learn, tqdm and matplotlib are only needed here

    return fit(arguments)


def predict(arguments, argv):
    from .tables.predicting import predict

    return predict(arguments)


def main(argv=None):
    """The exit status: 0, 2 for bad input, 130 after Ctrl-C."""
    argv = join_negative_values(sys.argv[1:] if argv is None else argv)
    arguments = parser().parse_args(argv)
    command = vars(arguments).pop("command")
    try:
        return COMMANDS[command](arguments, argv[1:])
    except ShrinkError as error:
        if not getattr(error, "said_elsewhere", False):
            print(f"{PROGRAM} {command}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{PROGRAM} {command}: interrupted", file=sys.stderr)
        return 130


COMMANDS = {"train": train, "fit": fit, "predict": predict, "info": info}

if __name__ == "__main__":
    sys.exit(main())
