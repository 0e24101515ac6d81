"""The ops as Python sees them: fakes for tracing, autograd, and one public function each."""

from . import (  # noqa: F401  each file registers its fakes, whoever imports one of them
    aliveness,
    bury,
    compact,
    conv,
    epilogue,
    filter,
    fold,
    group_norm,
    layer_norm,
    linear,
)
