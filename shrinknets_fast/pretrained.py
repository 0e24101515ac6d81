"""The config of a Hugging Face model that has shrunk: numbers that make the sizes that are left, found by trial."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from .insides import pytree

Place = tuple[str, int]  # of a tensor, and one of its dimensions
Sizes = dict[Place, tuple[int, int]]  # (by the config, left)
Change = tuple[
    tuple[str, ...], Any
]  # where in the config: names of configs inside of it, and of the field; its new value
TOLERANCE = {
    torch.float16: 2e-2,
    torch.bfloat16: 2e-2,
}  # elsewhere 1e-4: another function is off by more, rounding by less


def made_from(model: nn.Module, config: Any) -> Mapping[str, torch.Tensor]:
    """The tensors of such a model by ``config``, without memory."""
    with torch.device("meta"):
        made: nn.Module = type(model)(copy.deepcopy(config))
    return made.state_dict()


def misfits(model: nn.Module, config: Any) -> Sizes | None:
    """What ``config`` makes otherwise than it is; None where names or numbers of dimensions differ."""
    own, made = model.state_dict(), made_from(model, config)
    if own.keys() != made.keys() or any(made[name].dim() != tensor.dim() for name, tensor in own.items()):
        return None
    sizes = {(name, d): (made[name].shape[d], n) for name, tensor in own.items() for d, n in enumerate(tensor.shape)}
    return {place: pair for place, pair in sizes.items() if pair[0] != pair[1]}


def fitting_changes(model: Any, example: tuple[Any, ...] | None) -> list[Change] | None:
    """Changes of ``model.config`` that make exactly the sizes of ``model``, and its function; None where none was found.

    A field is tried if it holds the size that the config makes, or a part of it: as one new number, as one of each layer
    (``per_layer_config`` of transformers 5, or a list). example: (args, kwargs) of the forward,
    for the trial (None: ``dummy_inputs``).
    """
    start = misfits(model, model.config)
    if not start:
        return start if start is None else []
    return next((found for found in search(model, model.config, start, []) if is_same(model, found, example)), None)


def search(model: Any, config: Any, wrong: Sizes, done: list[Change]) -> Iterator[list[Change]]:
    if not wrong:
        yield done
        return
    changed = {path for path, _ in done}
    for change in candidates(config, wrong):
        if change[0] in changed:
            continue
        tried = copy.deepcopy(config)
        try:
            apply(tried, [change])
            left = misfits(model, tried)
        except Exception:
            continue  # no such model
        if left is not None and len(left) < len(wrong):
            yield from search(model, tried, left, [*done, change])


def candidates(config: Any, wrong: Sizes) -> Iterator[Change]:
    for path, value in fields(config):
        new = {place: left for place, (made, left) in wrong.items() if made == value}
        for size in dict.fromkeys(new.values()):
            yield path, size
        layers = {layer: size for (name, _), size in new.items() if (layer := layer_of(name)) is not None}
        if len(set(layers.values())) > 1:
            owner = at(config, path[:-1])
            if hasattr(type(owner), "per_layer_config"):
                yield (*path[:-1], "per_layer_config"), {layer: {path[-1]: size} for layer, size in layers.items()}
            yield path, [layers.get(layer, value) for layer in range(max(layers) + 1)]
    for path, value in fields(config):  # a number of heads makes a multiple of it
        parts = {
            value * left // made for made, left in wrong.values() if made % value == 0 and value * left % made == 0
        }
        yield from ((path, size) for size in sorted(parts - {value}) if size)
    for path, values in lists(config):
        layers = {layer: left for (name, _), (_, left) in wrong.items() if (layer := layer_of(name)) is not None}
        yield path, [layers.get(layer, value) for layer, value in enumerate(values)]


def fields(config: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], int]]:
    """Its numbers, and those of the configs inside of it."""
    for name, value in vars(config).items():
        if type(value) is int and value > 1 and not name.startswith("_"):
            yield (*path, name), value
        elif hasattr(value, "to_dict") and hasattr(value, "__dict__"):
            yield from fields(value, (*path, name))


def lists(config: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], list[int]]]:
    """As :func:`fields`, those with one number for each layer."""
    for name, value in vars(config).items():
        if isinstance(value, list) and value and all(type(number) is int for number in value):
            yield (*path, name), value
        elif hasattr(value, "to_dict") and hasattr(value, "__dict__"):
            yield from lists(value, (*path, name))


def layer_of(name: str) -> int | None:
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def at(config: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        config = getattr(config, name)
    return config


def apply(config: Any, changes: list[Change]) -> None:
    for path, value in changes:
        setattr(at(config, path[:-1]), path[-1], copy.deepcopy(value))


@torch.no_grad()
def is_same(model: Any, changes: list[Change], example: tuple[Any, ...] | None) -> bool:
    """Whether a model made by the changed config, with these tensors, computes the same: sizes alone do not tell, as a factor
    may be computed from one."""
    config = copy.deepcopy(model.config)
    apply(config, changes)
    first = next(model.parameters())
    with torch.random.fork_rng(devices=[]):
        made = type(model)(config).to(device=first.device, dtype=first.dtype)
    made.load_state_dict(model.state_dict(), assign=True)
    modes = {module: module.training for module in model.modules()}
    try:
        for args, kwargs in trials(model, example):
            try:
                wanted = outputs(model.eval(), args, kwargs)
            except Exception:
                continue  # not inputs of this model
            found = outputs(made.eval(), args, kwargs)
            return bool(wanted) and len(found) == len(wanted) and all(map(is_near, found, wanted))
    except Exception:
        return False
    finally:
        for module, training in modes.items():
            module.training = training
    return False


def trials(model: Any, example: tuple[Any, ...] | None) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    device, dtype = (first := next(model.parameters())).device, first.dtype
    generator = torch.Generator().manual_seed(0)

    def filled(t: torch.Tensor) -> torch.Tensor:
        if t.is_floating_point():
            return torch.randn(t.shape, generator=generator).to(device=device, dtype=dtype)
        numbers = torch.arange(t.numel()).view(t.shape) % 2
        return (1 - numbers).to(device=device, dtype=t.dtype)

    if example is not None:
        yield pytree.tree_map_only(torch.Tensor, filled, example)
    dummy = getattr(model, "dummy_inputs", None)
    if dummy is not None:
        yield (), {name: t.to(device) for name, t in dummy.items()}


def outputs(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
    found = model(*args, **kwargs)
    leaves = pytree.tree_leaves(found.to_tuple() if hasattr(found, "to_tuple") else found)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]


def is_near(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    if found.shape != wanted.shape:
        return False
    most = wanted.nan_to_num().abs().max() if wanted.numel() else 0
    return torch.allclose(found, wanted, rtol=0, atol=float(most) * TOLERANCE.get(wanted.dtype, 1e-4), equal_nan=True)
