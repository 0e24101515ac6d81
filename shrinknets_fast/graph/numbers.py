"""The plain numbers in a forward: a scale such as ``d ** -0.5`` or a slice's bounds must stay right at another width."""

from fractions import Fraction
from types import MethodWrapperType

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import ShrinkError

aten = torch.ops.aten


class Numbers(TorchDispatchMode):
    """Notes the numbers of every op. Raises at the first op, hence at the user's line, where they are not as expected."""

    def __init__(self, expected=None):
        super().__init__()
        self.found = []
        self.expected = expected
        self.calls = []  # the functions that the forward calls
        self.inside = False  # of fused attention, which picks another kernel for other widths
        self.functions = Functions(self)

    def __enter__(self):
        self.functions.__enter__()
        return super().__enter__()

    def __exit__(self, *raised):
        super().__exit__(*raised)
        self.functions.__exit__(*raised)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not self.inside:
            self.note(func, numbers_of(func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))

    def note(self, func, numbers):
        if not numbers:
            return
        place = len(self.found)
        self.found.append((func, numbers))
        if self.expected is not None and self.expected[place : place + 1] != self.found[place:]:
            raise ShrinkError(f"{func} is called with other numbers ({in_words(numbers)}) than at full width")


class Functions(TorchFunctionMode):
    """Notes what is called; of a fused attention its own numbers, not those of the kernel it picks."""

    def __init__(self, numbers):
        super().__init__()
        self.numbers = numbers

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not isinstance(func, MethodWrapperType):  # the reading of an attribute, which fake tensors have of their own
            self.numbers.calls.append(func)
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        self.numbers.note(func, tuple(a for a in (*args, *kwargs.values()) if isinstance(a, float)))
        self.numbers.inside = True
        try:
            return func(*args, **kwargs)
        finally:
            self.numbers.inside = False


def numbers_of(func, args, kwargs):
    """Bounds as shares of the axis they cut, so that half stays half; else all floats, and an elementwise op's integers."""
    if func is aten.slice.Tensor:
        x, dim, start, end, step = [*args, *(0, None, None, 1)[len(args) - 1 :]]
        size = x.shape[dim]
        start, end, step = slice(start, end, step).indices(size)
        return () if (start, end) == (0, size) else (Fraction(start, size), Fraction(end, size), step)
    if func in (aten.split.Tensor, aten.split_with_sizes.default):
        size = args[0].shape[args[2] if len(args) > 2 else kwargs.get("dim", 0)]
        return tuple(
            Fraction(part, max(size, 1)) for part in (args[1] if isinstance(args[1], (list, tuple)) else [args[1]])
        )
    kinds = (float, int) if torch.Tag.pointwise in func.tags else (float,)
    return tuple(arg for arg in (*args, *kwargs.values()) if isinstance(arg, kinds) and not isinstance(arg, bool))


def in_words(numbers):
    return ", ".join(str(number) for number in numbers)
