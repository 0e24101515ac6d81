"""Lightning, Hugging Face's Trainer, accelerate and TensorBoard. Each is imported when it is asked for."""

import importlib
from types import ModuleType

NAMES = ("accelerate", "lightning", "tensorboard", "transformers")


def __getattr__(name: str) -> ModuleType:
    if name not in NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f".{name}", __name__)


def __dir__() -> list[str]:
    return list(NAMES)
