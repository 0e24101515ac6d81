"""Layers that carry a filter. Each subclasses the ``torch.nn`` layer it extends and adds one parameter, ``theta``."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypedDict, Unpack, cast

import torch
from torch import nn

from . import functional
from .dispatch import Path
from .errors import ShrinkError
from .folded import Activation, FoldedReads, Init, Layer, is_affine, unfolded
from .functional import Padding, Size
from .insides import BatchNorm as PlainBatchNorm
from .sharded import is_sharded
from .synced import group_of

__all__ = [
    "Filter",
    "FilterBase",
    "FilteredBatchNorm1d",
    "FilteredBatchNorm2d",
    "FilteredBatchNorm3d",
    "FilteredConv1d",
    "FilteredConv2d",
    "FilteredConv3d",
    "FilteredLinear",
    "FilteredSyncBatchNorm",
]

Device = torch.device | str | int | None

if TYPE_CHECKING:  # what the mixins find behind them
    from .insides import BatchNorm
    from .insides import ConvNd as Conv
else:
    BatchNorm = Conv = object


class ConvOptions(TypedDict, total=False):
    """What the torch.nn layer takes by name."""

    stride: Size
    padding: Padding
    dilation: Size
    groups: int
    bias: bool
    padding_mode: Literal["zeros", "reflect", "replicate", "circular"]
    device: Device
    dtype: torch.dtype | None


class BatchNormOptions(TypedDict, total=False):
    """As :class:`ConvOptions`; ``bias`` since torch 2.14."""

    eps: float
    momentum: float | None
    affine: bool
    track_running_stats: bool
    bias: bool


class FilterBase(Layer):
    """What all layers with a filter share. ``theta``: Parameter of shape (C,); feature k is dead once theta[k] <= 0.

    Where features can only leave together, as those of an attention head, one entry of theta is that of ``neighbours`` features
    side by side, in each of ``blocks`` equal blocks.
    """

    # casts, because torch.jit reads a module's annotations
    neighbours = 1
    blocks = 1
    plain = cast("type[nn.Module]", None)  # the torch.nn class that this one extends
    activation = cast("Activation | None", None)

    @property
    def alive(self) -> torch.Tensor:
        """Bool mask of shape (C,). A NaN counts as alive: it is an error to report, never a dead feature."""
        return ~(self.theta.detach() <= 0)

    @property
    def repeated_theta(self) -> torch.Tensor:
        """theta with an entry for each feature."""
        theta: torch.Tensor = self.theta
        theta = theta if self.neighbours == 1 else theta.repeat_interleave(self.neighbours)
        return theta if self.blocks == 1 else theta.repeat(self.blocks)

    def attach_theta(self, num_features: int, init: Init, theta: nn.Parameter | None, **factory: Any) -> None:
        """Create ``theta``, or share the one given."""
        name = type(self).__name__
        self.init = checked_init(name, init)
        self.owns_theta = theta is None
        if theta is None:
            self.theta = nn.Parameter(torch.empty(num_features, **factory))
            self.reset_theta()
            return
        if not isinstance(theta, nn.Parameter) or not theta.is_floating_point():
            raise ShrinkError(f"{name}: theta is {type(theta).__name__}, expected a floating-point nn.Parameter")
        if tuple(theta.shape) != (num_features,):
            raise ShrinkError(f"{name}: theta has shape {tuple(theta.shape)}, expected ({num_features},)")
        self.theta = theta

    @torch.no_grad()
    def reset_theta(self) -> None:
        """Draw theta anew: U(0, 1] (nothing starts dead), or the constant given as ``init``."""
        if self.init == "uniform":
            self.theta.uniform_(0, 1).neg_().add_(1)
        else:
            self.theta.fill_(self.init)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if "theta" in self._parameters and self.owns_theta:  # torch.nn's constructors call this before theta exists
            self.reset_theta()

    def __prepare_scriptable__(self) -> NoReturn:
        """torch.jit.script asks first."""
        kind = type(self).__name__
        raise ShrinkError(f"{kind} cannot be compiled by torch.jit.script; script what fold_filters(model) gives")

    def extra_repr(self) -> str:
        with unfolded():  # which parts are sharded, say, cannot be read otherwise
            extra = super().extra_repr()
        shown = "?" if self.theta.is_meta or is_sharded(self.theta) else int(self.alive.sum())
        together = self.neighbours * self.blocks
        alive = f"alive={shown}/{self.theta.numel()}{f' of {together}' if together > 1 else ''}"
        activation = f", activation={self.activation!r}" if self.activation else ""
        return f"{extra}{', ' if extra else ''}{alive}{activation}"


def checked_init(name: str, init: Init) -> Init:
    """``init`` if it is "uniform" or a positive number, else an error that names the layer."""
    if init == "uniform":
        return init
    if isinstance(init, (int, float)) and not isinstance(init, bool) and 0 < init < math.inf:
        return float(init)
    raise ShrinkError(f"{name}: init is {init!r}, expected 'uniform' or a positive finite number")


def checked_activation(name: str, activation: Activation | None) -> Activation | None:
    if activation not in (None, "relu"):
        raise ShrinkError(f"{name}: activation is {activation!r}, expected None or 'relu'")
    return activation


class Filter(FilterBase, nn.Module):
    """``Filter(x) = x * max(0, theta)`` along ``dim``; ShrinkNets, equation 1.

    num_features: C; the input has C entries along ``dim`` and any number of dimensions. With ``num_features=1`` one theta
    gates the whole tensor. A dead feature's output is exactly zero even where its input is NaN or infinite.
    """

    def __init__(
        self,
        num_features: int,
        *,
        dim: int = 1,
        init: Init = "uniform",
        theta: nn.Parameter | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(num_features, int) or num_features < 1:
            raise ShrinkError(f"Filter: num_features is {num_features!r}, expected a positive integer")
        self.dim = dim
        self.attach_theta(num_features, init, theta, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        if self.owns_theta:
            self.reset_theta()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return functional.filter(input, self.repeated_theta, self.dim)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, dim={self.dim}"


class FilteredLinear(FilterBase, FoldedReads, nn.Linear):
    """``act((x W^T + b) * max(0, theta))``: (*, in) to (*, out), as ``nn.Linear``. activation: None or "relu".

    path: an attribute; None lets dispatch.py choose how to compute, a name overrules it.
    """

    plain = nn.Linear
    path = cast("Path | None", None)
    if TYPE_CHECKING:
        bias: torch.Tensor  # type: ignore[assignment]  # computed, so no Parameter as torch has it

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        activation: Activation | None = None,
        init: Init = "uniform",
        theta: nn.Parameter | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        nn.Linear.__init__(self, in_features, out_features, bias, device=device, dtype=dtype)
        self.activation = checked_activation(type(self).__name__, activation)
        self.attach_theta(out_features, init, theta, device=device, dtype=dtype)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return functional.filtered_linear(
            input, *self.raw_parameters(input), activation=self.activation, path=self.path
        )


class _FilteredConv(FilterBase, FoldedReads, Conv):
    """``act(conv(x) * max(0, theta))`` with one theta per output channel; arguments as the ``torch.nn`` layer.

    path: an attribute, as in :class:`FilteredLinear`.
    """

    path = cast("Path | None", None)
    if TYPE_CHECKING:
        function: Callable[..., torch.Tensor]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        *args: Size | str,
        activation: Activation | None = None,
        init: Init = "uniform",
        theta: nn.Parameter | None = None,
        **kw: Unpack[ConvOptions],
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, *args, **kw)
        self.activation = checked_activation(type(self).__name__, activation)
        weight: Any = self._parameters["weight"]
        self.attach_theta(out_channels, init, theta, device=weight.device, dtype=weight.dtype)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        parameters = self.raw_parameters(input)
        padding: Size | str = self.padding
        if self.padding_mode != "zeros":
            input = nn.functional.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        return self.function(
            input,
            *parameters,
            stride=self.stride,
            padding=padding,
            dilation=self.dilation,
            groups=self.groups,
            activation=self.activation,
            path=self.path,
        )


class FilteredConv1d(_FilteredConv, nn.Conv1d):
    __doc__ = _FilteredConv.__doc__ or ""
    plain = nn.Conv1d
    function = staticmethod(functional.filtered_conv1d)


class FilteredConv2d(_FilteredConv, nn.Conv2d):
    __doc__ = _FilteredConv.__doc__ or ""
    plain = nn.Conv2d
    function = staticmethod(functional.filtered_conv2d)


class FilteredConv3d(_FilteredConv, nn.Conv3d):
    __doc__ = _FilteredConv.__doc__ or ""
    plain = nn.Conv3d
    function = staticmethod(functional.filtered_conv3d)


class _FilteredBatchNorm(FilterBase, FoldedReads, BatchNorm):  # type: ignore[misc]  # weight and bias are computed, no Parameters
    """``batch_norm(x) * max(0, theta)`` with the filter inside the affine pair; arguments as the ``torch.nn`` layer."""

    function = function_of_one = staticmethod(functional.filtered_batch_norm)
    affine = is_affine("affine")

    def __init__(
        self,
        num_features: int,
        *args: float | None,
        init: Init = "uniform",
        theta: nn.Parameter | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
        **kw: Unpack[BatchNormOptions],
    ) -> None:
        super().__init__(num_features, *args, device=device, dtype=dtype, **kw)
        self.attach_theta(num_features, init, theta, device=device, dtype=dtype)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        parameters = self.raw_parameters(input)
        self._check_input_dim(input)
        momentum = 0.0 if self.momentum is None else self.momentum
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:  # torch's cumulative moving average
                momentum = 1.0 / float(self.num_batches_tracked)
        use_batch = self.training or (self.running_mean is None and self.running_var is None)
        keep_stats = not self.training or self.track_running_stats
        return self.function(
            input,
            self.running_mean if keep_stats else None,
            self.running_var if keep_stats else None,
            *parameters,
            training=use_batch,
            momentum=momentum,
            eps=self.eps,
        )


class FilteredBatchNorm1d(_FilteredBatchNorm, nn.BatchNorm1d):  # type: ignore[misc]  # as there
    __doc__ = _FilteredBatchNorm.__doc__ or ""
    plain = nn.BatchNorm1d


class FilteredBatchNorm2d(_FilteredBatchNorm, nn.BatchNorm2d):  # type: ignore[misc]  # as there
    __doc__ = _FilteredBatchNorm.__doc__ or ""
    plain = nn.BatchNorm2d


class FilteredBatchNorm3d(_FilteredBatchNorm, nn.BatchNorm3d):  # type: ignore[misc]  # as there
    __doc__ = _FilteredBatchNorm.__doc__ or ""
    plain = nn.BatchNorm3d


class FilteredSyncBatchNorm(_FilteredBatchNorm, PlainBatchNorm):  # type: ignore[misc]  # as there
    """``nn.SyncBatchNorm`` with a filter: in training the statistics are those of all ranks of ``process_group`` (None: of all).

    It runs on the CPU too, for which torch has none. There DistributedDataParallel refuses ``nn.SyncBatchNorm`` by its class, so
    this is a batch norm of its own.
    """

    plain = nn.SyncBatchNorm
    process_group: Any = None

    def __init__(
        self,
        num_features: int,
        *args: float | None,
        process_group: Any = None,
        init: Init = "uniform",
        theta: nn.Parameter | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
        **kw: Unpack[BatchNormOptions],
    ) -> None:
        super().__init__(num_features, *args, init=init, theta=theta, device=device, dtype=dtype, **kw)
        self.process_group = process_group

    def _check_input_dim(self, input: torch.Tensor) -> None:
        if input.dim() < 2:
            raise ShrinkError(f"{type(self).__name__}: input has {input.dim()} dimensions, expected at least 2")

    def function(self, *tensors: Any, **options: Any) -> torch.Tensor:
        return self.function_of_one(*tensors, **options, group=group_of(self))

    @classmethod
    def convert_sync_batchnorm(cls, module: nn.Module, process_group: Any = None) -> nn.Module:
        """Filtered batch norms of ``module`` become these, in place and with their theta; plain ones become torch's own.

        Returns ``module``, or what takes its place where it is a plain batch norm itself.
        """
        if isinstance(module, _FilteredBatchNorm):
            own: Any = module  # of another class afterwards
            own.__class__, own.process_group = cls, process_group
        elif isinstance(module, PlainBatchNorm) and not isinstance(module, nn.SyncBatchNorm):
            return nn.SyncBatchNorm.convert_sync_batchnorm(module, process_group)
        for name, child in list(module.named_children()):
            if (new := cls.convert_sync_batchnorm(child, process_group)) is not child:
                setattr(module, name, new)
        return module
