"""Norms over features that carry a filter: statistics over the alive features, dead ones come out as zeros."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from . import functional
from .errors import ShrinkError
from .folded import FoldedReads, Init, is_affine
from .insides import InstanceNorm as PlainInstanceNorm
from .nn import Device, FilterBase

__all__ = [
    "FilteredGroupNorm",
    "FilteredInstanceNorm1d",
    "FilteredInstanceNorm2d",
    "FilteredInstanceNorm3d",
    "FilteredLayerNorm",
    "FilteredRMSNorm",
]

if TYPE_CHECKING:  # what the mixin finds behind it
    InstanceNorm = PlainInstanceNorm
else:
    InstanceNorm = object


def checked_shape(name: str, normalized_shape: int | Sequence[int]) -> int:
    """The number of features."""
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    if len(shape) != 1:
        raise ShrinkError(f"{name}: normalized_shape is {shape}, expected one dimension: that of the features")
    return shape[0]


class FilteredLayerNorm(FilterBase, FoldedReads, nn.LayerNorm):  # type: ignore[misc]  # weight and bias are computed
    """``layer_norm(x) * max(0, theta)`` over the last dimension, with the statistics of the alive features alone.

    Arguments as ``nn.LayerNorm``; normalized_shape: one dimension. (*, C) to (*, C). Dead features are not counted and come out
    as exact zeros, so removing them is exact, and ``fold_filters`` gives the ``nn.LayerNorm`` of the smaller size. All norms
    that read one residual trunk may share one ``theta``: a feature that is dead in all of them leaves the trunk, whatever it
    holds there.

    ``weight`` and ``bias`` are the function's only where nothing is dead: torch's own layer norm counts dead features.
    """

    plain = nn.LayerNorm
    elementwise_affine = is_affine("elementwise_affine")

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        init: Init = "uniform",
        theta: nn.Parameter | None = None,
    ) -> None:
        size = checked_shape(type(self).__name__, normalized_shape)
        nn.LayerNorm.__init__(self, size, eps, elementwise_affine, bias, device=device, dtype=dtype)
        self.attach_theta(size, init, theta, device=device, dtype=dtype)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return functional.filtered_layer_norm(input, self.normalized_shape, *self.raw_parameters(input), eps=self.eps)


class FilteredRMSNorm(FilterBase, FoldedReads, nn.RMSNorm):  # type: ignore[misc]  # as there
    """``rms_norm(x) * max(0, theta)`` as :class:`FilteredLayerNorm`, without mean and bias; arguments as ``nn.RMSNorm``."""

    plain = nn.RMSNorm
    elementwise_affine = is_affine("elementwise_affine")

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        init: Init = "uniform",
        theta: nn.Parameter | None = None,
    ) -> None:
        size = checked_shape(type(self).__name__, normalized_shape)
        nn.RMSNorm.__init__(self, size, eps, elementwise_affine, device=device, dtype=dtype)
        self.attach_theta(size, init, theta, device=device, dtype=dtype)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        weight, _, theta = self.raw_parameters(input)
        return functional.filtered_rms_norm(input, self.normalized_shape, weight, theta, eps=self.eps)


class FilteredGroupNorm(FilterBase, FoldedReads, nn.GroupNorm):  # type: ignore[misc]  # as there
    """``group_norm(x) * max(0, theta)`` with the statistics of each group's alive channels; arguments as ``nn.GroupNorm``.

    A group without an alive channel comes out as zeros. Groups stay equal, so the j-th channels of all groups leave together.
    """

    plain = nn.GroupNorm
    affine = is_affine("affine")

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        init: Init = "uniform",
        theta: nn.Parameter | None = None,
        **kw: Any,  # bias, since torch 2.14
    ) -> None:
        nn.GroupNorm.__init__(self, num_groups, num_channels, eps, affine, device=device, dtype=dtype, **kw)
        self.attach_theta(num_channels, init, theta, device=device, dtype=dtype)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return functional.filtered_group_norm(input, self.num_groups, *self.raw_parameters(input), eps=self.eps)


class _FilteredInstanceNorm(FilterBase, FoldedReads, InstanceNorm):  # type: ignore[misc]  # as there
    """``instance_norm(x) * max(0, theta)`` with the filter inside the affine pair; arguments as the ``torch.nn`` layer."""

    affine = is_affine("affine")

    def __init__(
        self,
        num_features: int,
        *args: float | bool,
        init: Init = "uniform",
        theta: nn.Parameter | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
        **kw: Any,  # eps, momentum, affine, track_running_stats; bias since torch 2.14
    ) -> None:
        super().__init__(num_features, *args, device=device, dtype=dtype, **kw)
        self.attach_theta(num_features, init, theta, device=device, dtype=dtype)

    def _apply_instance_norm(self, input: torch.Tensor) -> torch.Tensor:
        return functional.filtered_instance_norm(
            input,
            self.running_mean,
            self.running_var,
            *self.raw_parameters(input),
            use_input_stats=self.training or not self.track_running_stats,
            momentum=0.0 if self.momentum is None else self.momentum,
            eps=self.eps,
        )


class FilteredInstanceNorm1d(_FilteredInstanceNorm, nn.InstanceNorm1d):  # type: ignore[misc]  # as there
    __doc__ = _FilteredInstanceNorm.__doc__ or ""
    plain = nn.InstanceNorm1d


class FilteredInstanceNorm2d(_FilteredInstanceNorm, nn.InstanceNorm2d):  # type: ignore[misc]  # as there
    __doc__ = _FilteredInstanceNorm.__doc__ or ""
    plain = nn.InstanceNorm2d


class FilteredInstanceNorm3d(_FilteredInstanceNorm, nn.InstanceNorm3d):  # type: ignore[misc]  # as there
    __doc__ = _FilteredInstanceNorm.__doc__ or ""
    plain = nn.InstanceNorm3d
