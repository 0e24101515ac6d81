"""The models of the census by library. A library is a module with ``MODELS``, {name: how it is made}, and ``make(name)``."""

import importlib

from ..registry import needed

LIBRARIES = {  # name -> (the module, what must be installed)
    "own": (f"{__package__}.own", "torch"),
    "timm": (f"{__package__}.of_timm", "timm"),
    "transformers": (f"{__package__}.of_transformers", "transformers"),
    "torchvision": (f"{__package__}.of_torchvision", "torchvision"),
    "smp": (f"{__package__}.of_smp", "segmentation_models_pytorch"),
}


def names(library):
    """The models of a library, which need not be installed."""
    return list(module_of(library).MODELS)


def make(library, name):
    """(model, args, kwargs) as the library makes them, float32; :class:`Unavailable` where it is not installed."""
    needed(LIBRARIES[library][1])
    model, *inputs = module_of(library).make(name)
    args, kwargs = [*inputs, {}][:2]
    return model, tuple(args) if isinstance(args, (tuple, list)) else (args,), kwargs


def module_of(library):
    return importlib.import_module(LIBRARIES[library][0])
