"""Versions of what a result depends on."""

import importlib.metadata
import platform


def versions():
    """{"shrinknets_fast": ..., "python": ..., "torch": ..., "triton": ...}; None where it is not installed."""
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in ("shrinknets_fast", "torch", "triton")},
    }


def version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
