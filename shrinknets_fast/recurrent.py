"""Recurrent layers with a filter: one theta for the hidden width, which all layers and directions of such a module share.

With ``s = max(0, theta)`` the hidden state is ``s * h``: it is what the layer gives, as output and as state, what it takes as
initial state, and what gates, and later layers, read. So nobody reads a dead feature, and its rows, columns and states can leave.
torch's own kernel computes ``h``, with ``s`` in the columns that read it, and the output is scaled::

    h_t = LSTM(x_t, s * h_{t-1}, c_{t-1})        output_t = s * h_t
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from .errors import ShrinkError
from .folded import Init
from .functional import filter
from .nn import FilterBase

__all__ = ["FilteredGRU", "FilteredLSTM", "FilteredRecurrent", "folded_recurrent"]

if TYPE_CHECKING:  # what the mixin finds behind it
    Recurrent: Any = nn.RNNBase
else:
    Recurrent = object


class FilteredRecurrent(FilterBase, Recurrent):
    """``nn.LSTM`` or ``nn.GRU`` with a theta of ``hidden_size`` entries; see recurrent.py. Arguments as the ``torch.nn`` layer,
    but no ``proj_size``. ``weight_ih_l0`` and so on are the parameters, without the filter.
    """

    call = cast("Callable[..., Any]", None)
    if TYPE_CHECKING:
        theta: Any
        hidden_size: int
        num_layers: int
        dropout: float
        bias: bool
        bidirectional: bool
        batch_first: bool
        mode: str
        all_weights: list[list[nn.Parameter]]
        proj_size: int
        weight_hh_l0: nn.Parameter

    def __init__(self, *args: Any, init: Init = "uniform", theta: nn.Parameter | None = None, **kw: Any) -> None:
        super().__init__(*args, **kw)
        if self.proj_size:
            raise ShrinkError(f"{type(self).__name__}: proj_size is {self.proj_size}, expected 0")
        weight = self.weight_hh_l0
        self.attach_theta(self.hidden_size, init, theta, device=weight.device, dtype=weight.dtype)

    def attach_theta(self, num_features: int, init: Init, theta: nn.Parameter | None, **factory: Any) -> None:
        super().attach_theta(num_features, init, theta, **factory)
        for group in self.all_weights:  # cuDNN's layer has them in one memory, where none can shrink
            for weight in group:
                if weight.untyped_storage().nbytes() > weight.nbytes:
                    with torch.no_grad():
                        weight.set_(weight.detach().clone())  # type: ignore[call-overload]  # torch declares no set_ of a tensor alone

    def flatten_parameters(self) -> None:
        """Nothing: what the kernel gets are products, not the parameters."""

    def reset_parameters(self) -> None:
        shared = None if getattr(self, "owns_theta", True) else self.theta.detach().clone()
        super().reset_parameters()
        if shared is not None:  # torch resets all parameters
            with torch.no_grad():
                self.theta.copy_(shared)

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    def kernel_weights(self) -> Iterator[torch.Tensor]:
        """Those of the kernel, in its order: with the filter in the columns that read the hidden state."""
        wide = self.theta.repeat(self.directions)
        for number, (inputs, hidden, *biases) in enumerate(self.all_weights):
            yield inputs if number < self.directions else filter(inputs, wide, 1)
            yield filter(hidden, self.theta, 1)
            yield from biases

    def _run(self, input: Any, states: list[torch.Tensor] | None) -> tuple[Any, list[torch.Tensor]]:
        """states: of shape (directions * layers, batch, hidden), the hidden one first."""
        data: torch.Tensor
        packing: list[Any]
        data, *packing = input if isinstance(input, PackedSequence) else (input,)
        batched = bool(packing) or data.dim() == 3
        if not batched:
            data = data.unsqueeze(0 if self.batch_first else 1)
            states = states and [state.unsqueeze(1) for state in states]
        if states is None:
            batch = int(packing[0][0]) if packing else data.shape[0 if self.batch_first else 1]
            like = self.theta.expand(self.num_layers * self.directions, batch, -1)  # no number, which trials would miss
            states = [torch.zeros_like(like, dtype=data.dtype) for _ in range(2 if self.mode == "LSTM" else 1)]
        else:
            scale = torch.where(self.theta > 0, self.theta, 1.0).to(states[0].dtype)
            states = [states[0] / scale, *states[1:]]
            if packing and packing[1] is not None:
                states = [state.index_select(1, packing[1]) for state in states]
        first = states if self.mode == "LSTM" else states[0]
        how = (self.bias, self.num_layers, self.dropout, self.training, self.bidirectional)
        if packing:
            output, *states = self.call(data, packing[0], first, list(self.kernel_weights()), *how)
        else:
            output, *states = self.call(data, first, list(self.kernel_weights()), *how, self.batch_first)
        output = filter(output, self.theta.repeat(self.directions), -1)
        alive = (self.theta > 0).to(self.theta.dtype)
        states = [filter(states[0], self.theta, -1), *(filter(state, alive, -1) for state in states[1:])]
        if packing:
            if packing[2] is not None:
                states = [state.index_select(1, packing[2]) for state in states]
            return PackedSequence(output, *packing), states
        if not batched:
            output, states = output.squeeze(0 if self.batch_first else 1), [state.squeeze(1) for state in states]
        return output, states


class FilteredLSTM(FilteredRecurrent, nn.LSTM):
    __doc__ = FilteredRecurrent.__doc__ or ""
    plain = nn.LSTM
    call = staticmethod(torch.lstm)

    def forward(self, input: Any, hx: Any = None) -> Any:
        output, states = self._run(input, None if hx is None else list(hx))
        return output, tuple(states)


class FilteredGRU(FilteredRecurrent, nn.GRU):
    __doc__ = FilteredRecurrent.__doc__ or ""
    plain = nn.GRU
    call = staticmethod(torch.gru)

    def forward(self, input: Any, hx: Any = None) -> Any:
        output, states = self._run(input, None if hx is None else [hx])
        return output, states[0]


class Scaled(nn.Module):
    """What :func:`folded_recurrent` traces, so that class and code belong to torch."""

    scale: torch.Tensor
    wide: torch.Tensor

    def __init__(self, layer: nn.Module, scale: torch.Tensor, wide: torch.Tensor) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("scale", scale)
        self.register_buffer("wide", wide)

    def forward(self, input):  # type: ignore[no-untyped-def]  # see folding._Scale
        output, states = self.layer(input)
        if isinstance(self.layer, nn.LSTM):
            return output * self.wide, (states[0] * self.scale, states[1] * (self.scale > 0))
        return output * self.wide, states * self.scale


@torch.no_grad()
def folded_recurrent(layer: Any) -> nn.Module:
    """The plain layer with the filter in its columns, and a product behind it, since no weight of its own scales its output.

    It takes no initial state, which would have to be divided first.
    """
    names = [name for name in layer._parameters if name != "theta"]
    weights = [weight.detach().clone() for weight in layer.kernel_weights()]
    scale = layer.theta.detach().clamp(min=0)
    directions = layer.directions
    del layer.theta
    for name in ("init", "owns_theta", "activation"):
        layer.__dict__.pop(name, None)
    layer.__class__ = layer.plain
    for name, weight in zip(names, weights, strict=True):
        setattr(layer, name, nn.Parameter(weight))
    traced = torch.fx.symbolic_trace(Scaled(layer, scale, scale.repeat(directions)))
    return traced.train(layer.training)
