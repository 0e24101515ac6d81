"""Where a filter does good: the modules after which a dead feature would be zero for every reader."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .network import Network
from .op import Op
from .value import Value
from .verdict import judge

# op -> (arguments of weight and bias, dimension of the weight that makes features, dimension of the result that has them)
LAYERS = {
    "linear": ("weight", "bias", 0, -1),
    "addmm": ("mat2", "self", 1, -1),
    **{f"conv{n}d": ("weight", "bias", 0, -1 - n) for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": ("weight", "bias", 1, -1 - n) for n in (1, 2, 3)},
    **dict.fromkeys(("batch_norm", "instance_norm", "group_norm"), ("weight", "bias", 0, 1)),
    **dict.fromkeys(("layer_norm", "rms_norm"), ("weight", "bias", 0, -1)),
}
COUNTING = (
    "layer_norm",
    "rms_norm",
    "group_norm",
)  # a filter in their weight alone would leave the dead in what they count
SCALINGS = ("mul", "multiply", "div")


@dataclass(frozen=True)
class Candidate:
    """``outputs``: {value: dimension} of all its calls; ``weight_dim``: the dimension of its weight that makes the features."""

    module: str
    outputs: dict[Value, int]
    weight_dim: int = 0

    @property
    def dim(self) -> int:
        return next(iter(self.outputs.values()))

    @property
    def ids(self) -> torch.Tensor:
        value, dim = next(iter(self.outputs.items()))
        axis = value.axes[dim]
        assert axis is not None  # else it is no candidate
        return axis.ids


@dataclass(frozen=True)
class Place:
    """Candidates that get one theta of ``size`` entries, each for several features where these can only leave together:
    ``neighbours``, in each of ``blocks`` blocks.
    """

    candidates: tuple[Candidate, ...]
    size: int
    neighbours: int
    blocks: int

    @property
    def supposed(self) -> dict[Value, int]:
        """{output: dimension} that the filter can make zero."""
        return supposed_zero(self.candidates)


def candidates(
    network: Network, layers: Mapping[str, nn.Module], adoptable: Iterable[str], others: Iterable[str]
) -> Iterator[Candidate]:
    """Modules that make the same features in each of their calls, in the order of the forward.

    layers: {name: module whose forward is one of LAYERS}; adoptable: those of them with a forward of their own; others: modules
    without weights, as activations, whose output has features along one dimension.
    """
    made: dict[str, list[Value]] = {}
    for path, modes in network.outputs.items():
        for values in modes:
            made.setdefault(path.partition("@")[0], []).extend(values)  # a second call may be "name@1"
    maker = {value: op for op in network.ops for value in op.results}
    for name, values in made.items():
        ops, found = [maker[value] for value in values], None
        if name in layers:  # beside its own op, hooks may mask its weight
            module = layers[name] if name in adoptable else None
            found = layer(name, [op for op in ops if kind_of(op) in LAYERS], module, maker)
        elif name in others and len({op.target for op in ops}) == 1:
            dims = {value: dim for value in values if (dim := feature_dim(value)) is not None}
            found = Candidate(name, dims) if len(dims) == len(values) else None
        if found is not None and same_features(found):
            yield found


def layer(name: str, ops: Sequence[Op], module: nn.Module | None, maker: Mapping[Value, Op]) -> Candidate | None:
    """One op a call. module: where it must be seen that the op's weight and bias are the module's, but for a constant factor."""
    outputs, dims = {}, set()
    for op in ops:
        weight, bias, weight_dim, dim = LAYERS[kind_of(op)]
        dim = op.network.norms[name].dim if name in op.network.norms else dim
        value = op.results[0]
        if module is not None and kind_of(op) in COUNTING:
            return None
        if module is not None and not (
            own(op[weight], module._parameters["weight"], maker)
            and own(op.get(bias), module._parameters["bias"], maker)
        ):
            return None
        if value.ndim < (2 if dim == 1 else abs(dim)) or weight_dim == 1 and op.get("groups", 1) != 1:
            return None
        outputs[value] = dim % value.ndim
        dims.add(weight_dim)
    return Candidate(name, outputs, dims.pop()) if len(dims) == 1 else None


def recurrent_candidates(network: Network, layers: Mapping[str, nn.Module]) -> Iterator[Candidate]:
    """LSTM and GRU: with a filter nobody, the layer itself included, would read a dead hidden feature."""
    own = [read for read in network.reads if "params" in read.op.arguments and read.value not in read.op.inputs]
    found: dict[str, dict[Value, int]] = {}
    for op, product in ((read.op, read.value) for read in own):
        module: Any = layers.get(op.module.partition("@")[0])
        if isinstance(module, nn.RNNBase) and [p.tensor for p in op["params"]] == list(module._parameters.values()):
            outputs = {value: value.ndim - 1 for value in op.results}
            found.setdefault(op.module.partition("@")[0], {}).update({product: 0, **outputs})
    for name, values in found.items():
        yield Candidate(name, values)


def own(value: Value | None, parameter: torch.Tensor | None, maker: Mapping[Value, Op]) -> bool:
    while value is not None and value.tensor is None:
        op = maker.get(value)
        if op is None or kind_of(op) not in SCALINGS or len(op.inputs) != 1:
            return False
        value = op.inputs[0]
    return (None if value is None else value.tensor) is parameter


def kind_of(op: Op) -> str:
    if op.module in op.network.norms:
        return op.network.norms[op.module].kind
    return getattr(getattr(op.target, "overloadpacket", None), "__name__", "")


def feature_dim(value: Value) -> int | None:
    """The only dimension but the first that has features, or None."""
    dims = [d for d in range(1, value.ndim) if value.axes[d] is not None]
    return dims[0] if len(dims) == 1 else None


def same_features(candidate: Candidate) -> bool:
    """In every call, and any at all."""
    axes = [value.axes[dim] for value, dim in candidate.outputs.items()]
    return None not in axes and all(torch.equal(axis.ids, candidate.ids) for axis in axes if axis is not None)


def find_places(network: Network, found: Iterable[Candidate], covered: torch.Tensor, tied: bool) -> list[Place]:
    """The :class:`Place` s for filters among the candidates ``found``.

    covered: mask over features that have a filter already. tied: also where only several modules together can make a feature
    zero, as the writers of a residual trunk, or keep it out of what they count, as its norms: they share one theta.
    """
    places: list[Place] = []
    left: dict[tuple[int, ...], list[Candidate]] = {}
    for candidate in found:
        if bool(covered[candidate.ids].any()) or repeats_of(candidate.ids) is None or len(candidate.ids.unique()) < 2:
            continue
        if works(network, [candidate]):
            covered[candidate.ids] = True
            places.append(place_of([candidate]))
        else:
            left.setdefault(tuple(candidate.ids.tolist()), []).append(candidate)
    for writers in left.values() if tied else ():
        if len(writers) < 2 or bool(covered[writers[0].ids].any()) or not works(network, writers):
            continue
        for writer in list(writers):  # a convolution before its batch norm is not needed
            others = [w for w in writers if w is not writer]
            if works(network, others):
                writers = others
        covered[writers[0].ids] = True
        places.append(place_of(writers))
    return places


def place_of(writers: Sequence[Candidate]) -> Place:
    repeats = repeats_of(writers[0].ids)
    assert repeats is not None  # else they are no candidates
    return Place(tuple(writers), len(writers[0].ids.unique()), *repeats)


def repeats_of(ids: torch.Tensor) -> tuple[int, int] | None:
    """(neighbours, blocks): each feature stands so often side by side, in so many equal blocks; None for another order."""
    size = len(ids.unique())
    neighbours = int((ids != ids[0]).nonzero()[0]) if size > 1 else len(ids)
    block = neighbours * size
    once = ids[:block:neighbours]
    if len(ids) % block or not torch.equal(ids, once.repeat_interleave(neighbours).repeat(len(ids) // block)):
        return None
    return neighbours, len(ids) // block


def supposed_zero(writers: Sequence[Candidate]) -> dict[Value, int]:
    return {value: dim for writer in writers for value, dim in writer.outputs.items()}


def works(network: Network, writers: Sequence[Candidate]) -> bool:
    """Whether every feature could leave if these modules' outputs were zero there."""
    if not writers:
        return False
    return bool(judge(network, {}, supposed_zero(writers)).removable[torch.cat([w.ids for w in writers])].all())
