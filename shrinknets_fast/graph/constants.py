"""Constants forward: behind sigmoid a dead feature is 1/2, and for inference a reader's bias can take that over.

Never while training: the bias that takes a constant over would learn it a second time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .features import Axis
from .network import Network
from .op import Op
from .value import Read, Value

MOVES = {"flatten", "view", "reshape", "_unsafe_view", "dropout", "contiguous", "detach", "alias", "clone"}
FOLD = torch.ops.shrinknets_fast.fold.default
POOLS = {"max_pool", "adaptive_max_pool", "adaptive_avg_pool"}  # of a constant channel: the same constant


class Constants:
    """In evaluation mode: for each value and dimension the constant at each position, NaN where there is none known."""

    def __init__(self, network: Network, dead: Mapping[int, torch.Tensor]) -> None:
        self._network = network
        self._zeros = network.zeros(dead)
        self._known = {}
        for op in network.ops:
            if op.mode == "eval":
                for value in op.results:
                    self._known[value] = [self._of(op, value, dim) for dim in range(value.ndim)]

    def __call__(self, value: Value, dim: int) -> torch.Tensor:
        if (known := self._known.get(value)) is not None:
            return known[dim]
        found, zero = unknown(value, dim), self._zeros(value, dim)  # of what a rule made to say what its op reads
        return found if zero is None else torch.where(zero, torch.zeros_like(found), found)

    def _of(self, op: Op, value: Value, dim: int) -> torch.Tensor:
        found, axis = unknown(value, dim), value.axes[dim]
        if axis is None:
            return found
        tensors = [v for v in op.inputs if v.tensor is None]
        kind = getattr(op.target, "overloadpacket", None)
        name = getattr(kind, "__name__", "").rstrip("_")
        if len(tensors) == 1 and tensors[0] in self._known:
            if name == "batch_norm":
                found = self._batch_norm(op, tensors[0], dim)
            elif name in MOVES or name.rstrip("123d") in POOLS:
                found = self._moved(tensors[0], axis)
            elif len(op.inputs) == 1 and torch.Tag.pointwise in op.target.tags and tensors[0].shape == value.shape:
                found = applied(op, self(tensors[0], dim))
        zero = self._zeros(value, dim)
        return found if zero is None else torch.where(zero, torch.zeros_like(found), found)

    def _moved(self, source: Value, to: Axis) -> torch.Tensor:
        """By feature; one that is several constants in its places is none."""
        low = torch.full((self._network.features.count,), float("inf"), dtype=torch.float64)
        high = -low
        for d, axis in enumerate(source.axes):
            if axis is not None:
                constants = self(source, d).nan_to_num(nan=float("inf"))
                low.scatter_reduce_(0, axis.ids, constants.where(constants.isfinite(), -torch.inf), "amin")
                high.scatter_reduce_(0, axis.ids, constants, "amax")
        return torch.where(low == high, low, torch.nan)[to.ids]

    def _batch_norm(self, op: Op, source: Value, dim: int) -> torch.Tensor:
        own = [op[name] for name in ("running_mean", "running_var", "weight", "bias")]
        if dim != 1 or any(isinstance(v, Value) and v.tensor is None for v in own) or own[0] is None:
            return torch.full_like(self(source, dim), torch.nan)
        mean, var, weight, bias = (None if v is None else v.tensor.detach().cpu().double() for v in own)
        return F.batch_norm(self(source, dim)[None], mean, var, weight, bias, False, 0.0, op["eps"])[0]


def unknown(value: Value, dim: int) -> torch.Tensor:
    axis = value.axes[dim]
    return torch.full((0 if axis is None else len(axis),), torch.nan, dtype=torch.float64)


def applied(op: Op, constants: torch.Tensor) -> torch.Tensor:
    """The pointwise op, asked for its values at the constants."""
    args = {n: constants.clone() if isinstance(op[n], Value) else op[n] for n in op.arguments}
    try:
        return torch.where(constants.isnan(), torch.nan, op.target(**args).double())  # sign(NaN) is 0
    except Exception:  # an op that cannot be asked promises nothing
        return torch.full_like(constants, torch.nan)


def takes_constants(model: nn.Module, network: Network, read: Read) -> nn.Module | None:
    """The module that reads, if its bias can take a constant over: a linear layer, or a convolution without padding.

    Its weight and bias must be what the op gets, as they are or folded, and the bias must go nowhere else: not to a second call.
    """
    op = read.op
    name = getattr(getattr(op.target, "overloadpacket", None), "__name__", "")
    if name not in ("linear", "conv1d", "conv2d", "conv3d") or op["weight"].shape[1] != len(read.axis):
        return None
    if name != "linear" and (any(read.op["padding"]) or read.op["groups"] != 1):
        return None
    taken = [op["weight"], op["bias"]]
    for maker in network.ops:
        if maker.target is FOLD and list(maker.results) == taken:
            if readers(network, op["bias"]) != 1:
                return None
            taken = [maker["weight"], maker["bias"]]
    module = model.get_submodule(op.module.partition("@")[0])
    own = [module._parameters.get(kind) for kind in ("weight", "bias")]
    if None in taken or any(value.tensor is None or value.tensor is not t for value, t in zip(taken, own, strict=True)):
        return None
    return module if readers(network, taken[1]) == 1 else None


def readers(network: Network, value: Value) -> int:
    return sum(op.mode == "eval" and value in op.inputs for op in network.ops)


def forgiven(model: nn.Module, network: Network, constants: Constants) -> Callable[[Read], torch.Tensor]:
    """For :func:`judge`: the positions of a read that need no zero, because a bias can take their constant over."""

    def positions(read: Read) -> torch.Tensor:
        ids = read.axis.ids
        if read.op.mode != "eval":
            return torch.ones(len(ids), dtype=torch.bool)
        known = ~constants(read.value, read.dim).isnan()
        return known if takes_constants(model, network, read) is not None else torch.zeros_like(known)

    return positions


@torch.no_grad()
def move_into_biases(model: nn.Module, network: Network, constants: Constants, gone: torch.Tensor) -> None:
    """Add what the features in ``gone`` would have contributed to the biases of their readers."""
    for read in network.reads:
        if read.op.mode != "eval":
            continue
        leaving = gone[read.axis.ids]
        amounts = torch.where(leaving, constants(read.value, read.dim), 0.0)
        if bool((amounts != 0).any()):
            module = takes_constants(model, network, read)
            assert module is not None  # forgiven() has asked it
            own: Mapping[str, Any] = module._parameters
            weight, bias = (own[kind] for kind in ("weight", "bias"))
            columns = weight.double().flatten(2).sum(2) if weight.dim() > 2 else weight.double()
            bias += (columns @ amounts.to(columns.device)).to(bias.dtype)
