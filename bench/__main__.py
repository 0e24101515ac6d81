"""python -m bench: measure, report, compare. See --help."""

import argparse
import secrets
import sys
from pathlib import Path

import torch

from . import registry, rows
from .census import command as census
from .table import as_text, comparisons


def parser():
    main = argparse.ArgumentParser(
        prog="python -m bench", description="Measurements of shrinknets_fast beside its rivals."
    )
    kinds = main.add_subparsers(dest="command", required=True, metavar="FAMILY|all|table|report|compare|census")
    for name, help in [*((n, summary(f)) for n, f in sorted(registry.load().items())), ("all", "every family")]:
        one = kinds.add_parser(name, help=help, description=help)
        one.add_argument("--quick", action="store_true", help="small sizes, seconds instead of minutes")
        one.add_argument("--out", default=rows.RESULTS, type=Path, help="folder of the rows; default: bench/results")
        one.add_argument("--only", metavar="TEXT", help="cases whose name contains it")
        one.add_argument("--roles", nargs="+", choices=registry.ROLES, help="providers to time; default: all")
        one.add_argument("--budget", type=float, metavar="SECONDS", help="begin no case after this time")
        one.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", type=torch.device)
        one.add_argument("--data", metavar="ROOT", help="where torchvision's data sets lie (end_to_end)")
        one.add_argument("--epochs", type=int, help="of end_to_end")
        one.add_argument("--examples", type=int, help="training images of end_to_end; default: all")
        one.add_argument("--seed", type=int, help="of the random data; default: a fresh one")
    one = kinds.add_parser("report", help="REPORT.md and charts from the rows")
    one.add_argument("--results", default=rows.RESULTS, type=Path)
    one.add_argument("--out", default=Path(__file__).parent, type=Path, help="folder of REPORT.md and charts/")
    one = kinds.add_parser("table", help="the rows of a folder as a table")
    one.add_argument("--results", default=rows.RESULTS, type=Path)
    one = kinds.add_parser("compare", help="time another commit beside this one")
    one.add_argument("revision", metavar="REV")
    one.add_argument("--family", default="layers", choices=sorted(registry.FAMILIES))
    one.add_argument("--only", metavar="TEXT", help="cases whose name contains it")
    one.add_argument("--full", action="store_true", help="full sizes; default: quick ones")
    one.add_argument("--rounds", type=int, default=4, help="both commits are timed once in each; default: 4")
    help = "public architectures: what can shrink, and whether a collection is exact"
    census.add_arguments(kinds.add_parser("census", help=help, description=help))
    return main


def summary(family):
    return sys.modules[family.__module__].__doc__.splitlines()[0]


def main(argv=None):
    arguments = parser().parse_args(argv)
    if arguments.command == "report":
        from .report import write

        return write(arguments.results, arguments.out)
    if arguments.command == "table":
        print(as_text(comparisons(rows.read(arguments.results))))
        return 0
    if arguments.command == "compare":
        from .compare import compare

        return compare(arguments)
    if arguments.command == "census":
        return census.main(arguments)
    from .run import run_families

    names = sorted(registry.FAMILIES) if arguments.command == "all" else [arguments.command]
    seed = secrets.randbits(31) if arguments.seed is None else arguments.seed
    options = registry.Options(
        arguments.quick, arguments.device, arguments.data, arguments.epochs, arguments.examples, seed
    )
    choice = {"only": arguments.only, "providers": arguments.roles, "budget": arguments.budget}
    made, errors = run_families(names, options, arguments.out, **choice)
    print(as_text(comparisons(made)))
    return 1 if errors else 0


if __name__ == "__main__":
    raise SystemExit(main())
