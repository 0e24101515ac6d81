"""Where the model is, in what people wrap around it. Nothing else in the package asks for ``.module``."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from .errors import ShrinkError


def inwards(module: object) -> Iterator[nn.Module]:
    """The module, then what it holds as ``.module`` or behind ``torch.compile``, and so on: an average's wrapper, any wrapper."""
    while isinstance(module, nn.Module):
        yield module
        module = getattr(module, "_orig_mod", getattr(module, "module", None))


def wrappers(model: nn.Module) -> list[nn.Module]:
    """Those of torch that compute what is inside, outermost first: of ``torch.compile`` and DistributedDataParallel."""
    found: list[nn.Module] = []
    for module in inwards(model):
        if not (hasattr(module, "_orig_mod") or isinstance(module, nn.parallel.DistributedDataParallel)):
            break
        found.append(module)
    return found


def unwrapped(model: nn.Module) -> nn.Module:
    """The model itself, inside its :func:`wrappers`. Raises where it is no module, as a stage of a pipeline is none."""
    if not isinstance(model, nn.Module):
        why = " (pipeline parallelism is not supported)" if type(model).__name__.startswith("Pipeline") else ""
        raise ShrinkError(f"model is a {type(model).__name__}, expected a torch.nn.Module{why}")
    return list(inwards(model))[len(wrappers(model))]
