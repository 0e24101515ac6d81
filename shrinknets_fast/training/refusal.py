"""How the command line says no: one line that names the argument and its value, exit status 2."""

import importlib

from ..errors import ShrinkError


class Refusal(ShrinkError):
    """What the command line cannot do with the arguments given; the message names them."""

    said_elsewhere = False  # whether another rank says it


def require(module, package, wanted_by, install="install the demo extra: pip install 'shrinknets_fast[demo]'"):
    """Import ``module``, which this package does not depend on."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Refusal(f"{wanted_by} needs {package}, which cannot be imported ({error}); {install}") from error
