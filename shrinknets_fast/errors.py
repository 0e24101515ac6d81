"""The one exception type of the package."""


class ShrinkError(ValueError):
    """A bad argument, or a network that cannot be handled; the message names the module and the values.

    Whoever raises it has changed nothing.
    """
