"""``--target-...``: lambda steered to a size, for the command line."""

from ..budget import Budget
from ..errors import ShrinkError
from .refusal import Refusal

TARGETS = ("parameters", "flops", "features")


def add_targets(add, type):
    """add: a parser's add_argument; type: of the numbers."""
    for name, words in zip(TARGETS, ("parameters", "FLOPs of a forward of one image", "live features"), strict=True):
        add(f"--target-{name}", type=type, metavar="N", help=f"steer lambda so that at most N {words} are left")


def make(model, data, arguments, steps):
    """The :class:`Budget` that the arguments ask for, which begins at --lam, or None."""
    targets = {name: getattr(arguments, f"target_{name}") for name in TARGETS}
    given = [f"--target-{name}" for name, value in targets.items() if value is not None]
    if not given:
        return None
    if len(given) > 1:
        raise Refusal(f"{' and '.join(given)} are given, expected one of them")
    if not arguments.lam:
        raise Refusal(
            f"{given[0]} with --lam {arguments.lam:g}: the search for lambda begins there, so it must be positive"
        )
    try:
        return Budget(model, data.images[:1], **targets, lam=arguments.lam, steps=steps)
    except ShrinkError as error:
        raise Refusal(f"{given[0]}: {error}") from error
