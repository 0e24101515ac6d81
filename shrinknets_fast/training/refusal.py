"""How the command line says no: one line that names the argument and its value, exit status 2."""

import importlib

from ..errors import ShrinkError


class Refusal(ShrinkError):
    """What the command line cannot do with the arguments given; the message names them."""


def require(module, package, wanted_by):
    """Import ``module``, which only the ``demo`` extra installs."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Refusal(
            f"{wanted_by} needs {package}, which cannot be imported ({error}); "
            f"install the demo extra: pip install 'shrinknets_fast[demo]'"
        ) from error
