"""The model's real forward on a copy without memory at the planned widths: a width baked into the user's code shows up here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..dispatch import folding
from ..errors import ShrinkError
from ..insides import FakeTensorMode, pytree
from .blame import blame, quiet, shortened
from .draws import same_draws
from .modules import Sizes, copied
from .numbers import Numbers, Planned
from .results import tensors_in
from .shapes import Shapes
from .trace import mode_of

if TYPE_CHECKING:
    from .plan import TensorPlan


class Stage:
    """Where a forward is tried: ``mode`` is on, and the tensors have no memory."""

    mode: FakeTensorMode | Shapes
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __enter__(self) -> None:
        self.mode.__enter__()

    def __exit__(self, *raised: Any) -> None:
        self.mode.__exit__(*raised)


class Fake(Stage):
    """Fake tensors: whatever runs on the device runs here."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.args, self.kwargs = pytree.tree_map_only(torch.Tensor, self.mode.from_tensor, (args, kwargs))

    def twin(self, tensor: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        return torch.empty(shape, dtype=tensor.dtype, device=tensor.device)


class Meta(Stage):
    """Meta tensors: 1.4 ms, not 13, for three linear layers, because each new size costs a fake tensor's op 0.2 ms and more.
    But they have no device, and do not mix with tensors that the forward makes elsewhere.
    """

    def __init__(self, fake: Fake) -> None:
        self.mode = Shapes()
        self.args, self.kwargs = pytree.tree_map_only(torch.Tensor, self.bare, (fake.args, fake.kwargs))

    @staticmethod
    def bare(tensor: torch.Tensor) -> torch.Tensor:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")

    def twin(self, tensor: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        return torch.empty(shape, dtype=tensor.dtype, device="meta")


class Rehearsal:
    """The example inputs, without memory, and the output shapes and numbers that each mode must keep."""

    def __init__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.fake = Fake(args, kwargs)
        self.stage: Fake | Meta = self.fake
        self.sizes = Sizes(model)
        self.shapes: dict[str, list[tuple[int, ...]]] | None = None
        self.numbers: dict[str, Numbers] = {}  # mode -> those at full width
        self.noted_on: Stage | None = None  # the stage they were noted on
        self.seen: dict[str, Numbers] = {}  # mode -> the Numbers of the last run

    @property
    def inputs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """(args, kwargs), fake."""
        return self.fake.args, self.fake.kwargs

    def run(self, model: nn.Module, tensors: Iterable[TensorPlan], at: str, splits: Planned | None = None) -> None:
        """Raise if the model cannot run with these :class:`TensorPlan` s, or gives another shape than before.

        A forward with a schedule or a cache may do something else today, at any width: what fails is tried against that.
        splits: see :meth:`Splits.shapes`.
        """
        try:
            self.try_once(model, tensors, at, splits)
        except ShrinkError:
            self.shapes, self.numbers, self.stage = None, {}, self.fake
            self.try_once(model, tensors, at, splits)

    def try_once(self, model: nn.Module, tensors: Iterable[TensorPlan], at: str, splits: Planned | None = None) -> None:
        """The same against what the forward did when it was last played at full width."""
        self.set_stage(model)
        try:
            shapes = self.output_shapes(model, {id(t.tensor): t.shape for t in tensors}, splits)
        except Exception as error:
            raise ShrinkError(f"{type(model).__name__} cannot run at {at}: {shortened(error)}{blame(error)}") from error
        assert self.shapes is not None  # the stage is set
        for mode, before in self.shapes.items():
            if shapes[mode] != before:
                raise ShrinkError(
                    f"{type(model).__name__} at {at} gives outputs of shape {shapes[mode]}, expected {before}: "
                    "its forward depends on a width that is written into the code"
                )

    def set_stage(self, model: nn.Module) -> None:
        """Play at full width, once. Meta tensors do where the forward makes the same calls with them, to the same effect."""
        if self.shapes is not None:
            return
        try:
            self.shapes = self.output_shapes(model)
        except Exception as error:
            raise ShrinkError(f"{type(model).__name__} cannot be tried: {shortened(error)}{blame(error)}") from error
        self.numbers, self.noted_on, self.seen = self.seen, self.stage, {}
        try:
            self.stage = Meta(self.fake)
            same = self.output_shapes(model) == self.shapes
        except Exception:
            same = False
        if same:
            self.numbers, self.noted_on = self.seen, self.stage
        else:
            self.stage = self.fake
        self.seen = {}  # what a later trial notes, up to where it fails, is not what is expected of the next

    def output_shapes(
        self, model: nn.Module, resized: Mapping[int, Sequence[int]] | None = None, splits: Planned | None = None
    ) -> dict[str, list[tuple[int, ...]]]:
        """{mode: output shapes} of a copy of ``model`` whose tensors have the shapes ``resized`` ({id: shape})."""
        with self.stage:
            twins = self.twins(model, resized or {})
        shadow = copied(model, twins)
        self.sizes.sync(shadow)
        self.sizes.watch(shadow)
        shapes = {}
        with same_draws(), self.stage, torch.no_grad(), folding(), quiet():
            for mode in ("train", "eval"):
                expected, values = self.numbers.get(mode), self.stage is self.noted_on
                with mode_of(shadow, mode == "train"), Numbers(expected, values, splits) as self.seen[mode]:
                    output = shadow(*self.stage.args, **self.stage.kwargs)
                shapes[mode] = [tuple(t.shape) for t in tensors_in(output)]
        return shapes

    def twins(self, model: nn.Module, resized: Mapping[int, Sequence[int]]) -> dict[int, torch.Tensor]:
        """{id: twin} of all parameters and buffers: the copy takes no memory."""
        twins = {}
        for tensor in (*model.parameters(), *model.buffers()):
            twin = self.stage.twin(tensor, resized.get(id(tensor), tensor.shape))
            is_parameter = isinstance(tensor, torch.nn.Parameter)
            twins[id(tensor)] = torch.nn.Parameter(twin, tensor.requires_grad) if is_parameter else twin
        return twins
