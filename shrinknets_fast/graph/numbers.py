"""The calls and plain numbers in a forward: ``if d > 8``, ``d ** -0.5`` or a slice's bounds must be right at other widths too."""

from fractions import Fraction
from types import MethodWrapperType

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import ShrinkError

aten = torch.ops.aten


class Numbers(TorchDispatchMode):
    """Notes the functions that a forward calls, and the numbers of every op.

    expected: another's ``found`` and ``calls``. Raises at the first op, hence at the user's line, where they are not as expected.
    """

    def __init__(self, expected=None):
        super().__init__()
        self.found, self.calls = [], []
        self.expected = expected
        self.inside = False  # of fused attention, which picks another kernel for other widths
        self.functions = Functions(self)

    @classmethod
    def supports_higher_order_operators(cls):
        return True

    def __enter__(self):
        self.functions.__enter__()
        return super().__enter__()

    def __exit__(self, *raised):
        super().__exit__(*raised)
        self.functions.__exit__(*raised)
        if not any(raised) and self.expected is not None and len(self.calls) < len(self.expected.calls):
            missing = name_of(self.expected.calls[len(self.calls)])
            raise ShrinkError(f"{missing} is not called as it was when the model was traced")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not self.inside and isinstance(func, torch._ops.OpOverload):
            self.note(func, numbers_of(func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))

    def note(self, func, numbers):
        if not numbers:
            return
        place = len(self.found)
        self.found.append((func, numbers))
        if self.expected is not None and self.expected.found[place : place + 1] != self.found[place:]:
            raise ShrinkError(f"{name_of(func)} is called with other numbers ({in_words(numbers)}) than at full width")

    def note_call(self, func):
        place = len(self.calls)
        self.calls.append(func)
        if self.expected is not None and self.expected.calls[place : place + 1] != self.calls[place:]:
            raise ShrinkError(f"{name_of(func)} is called where it was not when the model was traced")


class Functions(TorchFunctionMode):
    """Notes what is called, what tensors are made from, and of a fused attention its own numbers, not its kernel's."""

    def __init__(self, numbers):
        super().__init__()
        self.numbers = numbers

    def __torch_function__(self, func, types, args=(), kwargs=None):
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
MAKERS = {torch.tensor, torch.as_tensor, torch.full, torch.ones, torch.zeros, torch.arange, torch.eye, torch.linspace}
MAKERS |= {getattr(torch.Tensor, f"new_{kind}") for kind in ("tensor", "full", "ones", "zeros")}


def name_of(func):
    return str(func) if isinstance(func, torch._ops.OpOverload) else getattr(func, "__name__", str(func))


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
