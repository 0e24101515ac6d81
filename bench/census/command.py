"""The arguments of ``python -m bench census``."""

from pathlib import Path

from . import libraries, runner


def add_arguments(parser):
    parser.add_argument("--library", choices=libraries.LIBRARIES, help="models of this library; default: of all")
    parser.add_argument("--model", metavar="NAME", help="this model alone")
    parser.add_argument(
        "--limit", type=float, default=runner.LIMIT, metavar="SECONDS", help="for one model; default: 240"
    )
    parser.add_argument(
        "--out", type=Path, default=runner.ROWS, metavar="FILE", help="default: bench/results/census.jsonl"
    )
    parser.add_argument("--jobs", type=int, default=1, help="models at once; default: 1")
    parser.add_argument("--again", action="store_true", help="models too that have a row of the same code")
    parser.add_argument("--page", action="store_true", help="only make docs/models.md from the rows")


def main(arguments):
    """Exit status: 1 where a model came out wrong, 2 where no model has the name."""
    if arguments.page:
        from .page import write

        print(f"wrote {write(arguments.out)}")
        return 0
    asked = [arguments.library] if arguments.library else list(libraries.LIBRARIES)
    chosen = [(library, name) for library in asked for name in libraries.names(library)]
    if arguments.model:
        chosen = [pair for pair in chosen if pair[1] == arguments.model]
        if not chosen:
            print(f"--model is {arguments.model!r}, which is no model of {', '.join(asked)}")
            return 2
    options = {"limit": arguments.limit, "jobs": arguments.jobs, "again": arguments.again}
    made = runner.run(chosen, out=arguments.out, say=lambda text: print(text, flush=True), **options)
    return 1 if any(row["status"].startswith("wrong") for row in made) else 0
