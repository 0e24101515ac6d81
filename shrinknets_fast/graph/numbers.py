"""The calls and plain numbers in a forward: ``if d > 8``, ``d ** -0.5`` or a slice's bounds must be right at other widths too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from fractions import Fraction
from types import MethodWrapperType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from ..errors import ShrinkError
from ..insides import OpOverload, TorchDispatchMode, disable_current_modes, pytree

aten = torch.ops.aten

View = tuple[tuple[int, ...], tuple[int, ...]]  # shapes: of what is viewed, and as what
Planned = Mapping[View, Set[View]]
VIEWS = {aten.view.default, aten._unsafe_view.default}


class Numbers(TorchDispatchMode):
    """Notes the functions that a forward calls, and the numbers of every op.

    expected: another's. Raises at the first op, hence at the user's line, where they are not as expected. values: whether what
    small tensors hold counts too, which differs where one stage knows it and the other does not. views: {a view that is expected:
    those that it may be now}.
    """

    def __init__(self, expected: Numbers | None = None, values: bool = True, views: Planned | None = None) -> None:
        super().__init__()
        self.expected, self.values, self.views = expected, values, views or {}
        self.viewed: list[View] = []
        self.calls: list[Any] = []  # functions
        self.found: list[tuple[Any, tuple[Any, ...]]] = []  # (op, numbers)
        # (op, shapes of its tensors, integers): equal shapes, equal integers
        self.integers: list[tuple[Any, list[tuple[int, ...]], list[int]]] = []
        self.held: list[tuple[Any, list[str]]] = []  # (op, what its small tensors hold)
        self.inside = False  # of fused attention, which picks another kernel for other widths
        self.functions = Functions(self)

    supports_higher_order_operators = True

    def __enter__(self) -> Numbers:
        self.functions.__enter__()
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        self.functions.__exit__(*raised)
        if any(raised) or self.expected is None:
            return
        if len(self.calls) < len(self.expected.calls):
            missing = name_of(self.expected.calls[len(self.calls)])
            raise ShrinkError(f"{missing} is not called as it was when the model was traced")
        if len(self.found) < len(self.expected.found):
            func, numbers = self.expected.found[len(self.found)]
            raise ShrinkError(f"{name_of(func)} is not called with the numbers ({in_words(numbers)}) of full width")

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if not self.inside and isinstance(func, OpOverload):
            self.note(func, numbers_of(func, args, kwargs or {}))
            self.note_integers(func, args, kwargs or {})
            self.note_values(func, args)
        result = func(*args, **(kwargs or {}))
        if func in VIEWS and not self.inside:
            self.note_view((tuple(args[0].shape), tuple(result.shape)))
        return result

    def other(self, kind: str, entry: Any) -> bool:
        """Note it; whether the expected one has something else at this place."""
        noted = getattr(self, kind)
        place = len(noted)
        noted.append(entry)
        return self.expected is not None and getattr(self.expected, kind)[place : place + 1] != [entry]

    def note(self, func: Any, numbers: tuple[Any, ...]) -> None:
        if numbers and self.other("found", (func, numbers)):
            raise ShrinkError(f"{name_of(func)} is called with other numbers ({in_words(numbers)}) than at full width")

    def note_integers(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        if func not in PLACING:
            return
        leaves = pytree.tree_leaves((args, kwargs))
        shapes = [tuple(t.shape) for t in leaves if isinstance(t, torch.Tensor)]
        integers, place = [n for n in leaves if isinstance(n, int)], len(self.integers)
        if self.other("integers", (func, shapes, integers)) and self.expected is not None:
            expected = self.expected.integers[place : place + 1]
            if expected and expected[0][:2] == (func, shapes):
                raise ShrinkError(
                    f"{name_of(func)} is called with other integers ({in_words(integers)}) than at full width"
                )

    def note_values(self, func: Any, args: Sequence[Any]) -> None:
        values = [values_in(arg) for arg in args if is_small_and_real(arg)]
        if values and self.other("held", (func, values)) and self.values:
            raise ShrinkError(f"{name_of(func)} is called with other values ({in_words(values)}) than at full width")

    def note_view(self, view: View) -> None:
        place = len(self.viewed)
        self.viewed.append(view)
        before = self.expected.viewed[place : place + 1] if self.expected is not None else []
        if before and view not in self.views.get(before[0], {view}):
            raise ShrinkError(f"a view of shape {before[0][1]} becomes {view[1]}: a size is written into the code")

    def note_call(self, func: Any) -> None:
        if self.other("calls", func):
            raise ShrinkError(f"{name_of(func)} is called where it was not when the model was traced")


class Functions(TorchFunctionMode):
    """Notes what is called, what tensors are made from, and of a fused attention its own numbers, not its kernel's."""

    def __init__(self, numbers: Numbers) -> None:
        super().__init__()
        self.numbers = numbers

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not isinstance(func, MethodWrapperType):  # the reading of an attribute, which fake tensors have of their own
            self.numbers.note_call(func)
        if func in MAKERS:
            leaves = pytree.tree_leaves((args, kwargs))
            self.numbers.note(func, tuple(n for n in leaves if isinstance(n, (int, float)) and not isinstance(n, bool)))
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        self.numbers.note(func, tuple(a for a in (*args, *kwargs.values()) if isinstance(a, float)))
        self.numbers.inside = True
        try:
            return func(*args, **kwargs)
        finally:
            self.numbers.inside = False


# Of what these make no rule knows what it holds, and a scalar pins nothing: sqrt(tensor(d)) must not change unseen.
MAKERS = {torch.tensor, torch.as_tensor, torch.asarray, torch.full, torch.ones, torch.zeros, torch.arange, torch.eye}
MAKERS |= {torch.linspace, torch.scalar_tensor, torch.randperm, torch.hann_window, torch.hamming_window}
MAKERS |= {getattr(torch.Tensor, f"new_{kind}") for kind in ("tensor", "full", "ones", "zeros")}


SMALL = 16  # entries

# These are not elementwise, but an integer there is a value, not a size.
COUNTING = {aten.full_like.default, aten.fill.Scalar, aten.fill_.Scalar, aten.scalar_tensor.default}
COUNTING |= {aten.topk.default, aten.kthvalue.default}

# Where these cut or place must not change while their tensor's shape does not. (A matmul's own views and permutes follow sizes.)
PLACING = {aten.constant_pad_nd.default, aten.roll.default, aten.select.int}


def name_of(func: Any) -> str:
    return str(func) if isinstance(func, OpOverload) else getattr(func, "__name__", str(func))


def numbers_of(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """Bounds as shares of the axis they cut, so that half stays half; else all that is no size."""
    if func is aten.slice.Tensor:
        given: list[Any] = [*args, *(0, None, None, 1)[len(args) - 1 :]]
        x, dim, start, end, step = given
        size = x.shape[dim]
        start, end, step = slice(start, end, step).indices(size)
        whole = (start, end, step) == (0, size, 1)
        return () if whole else (Fraction(start, max(size, 1)), Fraction(end, max(size, 1)), step)
    if func in (aten.split.Tensor, aten.split_with_sizes.default):
        size = args[0].shape[args[2] if len(args) > 2 else kwargs.get("dim", 0)]
        return tuple(
            Fraction(part, max(size, 1)) for part in (args[1] if isinstance(args[1], (list, tuple)) else [args[1]])
        )
    kinds = (float, bool, str, int) if torch.Tag.pointwise in func.tags or func in COUNTING else (float, bool, str)
    return tuple(arg for arg in (*args, *kwargs.values()) if isinstance(arg, kinds))


def values_in(tensor: torch.Tensor) -> str:
    with disable_current_modes():
        return str(tensor.tolist())  # text: a NaN is equal to itself


def is_small_and_real(arg: Any) -> bool:
    """A tensor with a value, as a forward makes it from numbers by a constructor that no mode sees: ``torch.Tensor([d])``."""
    return (
        type(arg) is torch.Tensor and arg.device.type != "meta" and arg.layout is torch.strided and arg.numel() <= SMALL
    )


def in_words(numbers: Iterable[Any]) -> str:
    return ", ".join(str(number) for number in numbers)
