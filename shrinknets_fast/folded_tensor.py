"""A layer's weight or bias with the filter folded in, as a tensor that reads and writes like the plain layer's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import nn

from .errors import ShrinkError
from .insides import DisableTorchFunctionSubclass, is_wrapped, pytree

if TYPE_CHECKING:
    from .folded import FoldedReads

__all__ = ["WAY_OUT", "FoldedTensor", "check_unfolded"]

WAY_OUT = "fold_filters(model) gives plain layers; under shrinknets_fast.unfolded() it is the parameter"


class FoldedTensor(torch.Tensor):
    """``max(0, theta) * parameter``, computed when it was read. Differentiable (once).

    Writing in place sets the parameter so that this product is what was written; a dead feature holds nothing but zeros. It is
    no parameter: it has no ``grad`` and no hooks, and none can be made of it but by ``clone()``. Methods return plain tensors,
    unless they lie in the same memory, so that what is written there arrives too, or have only moved elsewhere.
    """

    source: Source
    alias: bool | None = None  # False: the value as it was read; True: another view of it; None: moved elsewhere

    def __hash__(self) -> NoReturn:
        raise ShrinkError(self.source.advice("it is looked up"))  # a group or an optimizer's state has the parameter

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        target: Any = args[0] if args else next(iter(kwargs.values()), None)
        kind = getattr(func, "__name__", "")
        if kind in ("__get__", "__set__"):
            kind = f"{func.__self__.__name__}.{kind}"
        if kind == "is_leaf.__get__":
            return False  # nor where no graph is kept: an optimizer would train a value that nobody reads
        if kind in ("requires_grad_", "requires_grad.__set__"):
            if target.alias is not False:
                raise ShrinkError(target.source.advice("a parameter is made of it"))
            target.source.parameter.requires_grad_(*args[1:], **kwargs)
            return target
        name = kind.partition(".")[0]
        if kind in KEPT and isinstance(target, cls):
            raise ShrinkError(target.source.advice(name))
        if (
            kind in LINEAR_ONLY
            and isinstance(target, cls)
            and target.alias is not None
            and target.source.layer.activation
        ):
            raise ShrinkError(target.source.advice(f"{name} knows nothing of the layer's activation"))
        source = next(t.source for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, cls))
        into = target if writes(kind) else kwargs.get("out")  # some functions of torch's own hand on out=None
        written = [t for t in pytree.tree_leaves(into) if isinstance(t, cls)]
        given, given_kwargs = args, kwargs
        args, kwargs = pytree.tree_map_only(cls, plain, (args, kwargs))
        if kind == "__deepcopy__":
            return args[0].detach().clone()
        if writes(kind) or written:
            return write(func, kind, written, args, kwargs) or target
        shared = [t for t in pytree.tree_leaves((given, given_kwargs)) if isinstance(t, cls) and t.alias is not None]
        versions = [version(t) for t in shared]
        result = func(*args, **kwargs)
        if versions != [version(t) for t in shared]:  # as relu(weight, inplace=True) does, whose name does not say so
            raise ShrinkError(source.advice(f"{kind} writes to it in place"))
        if hasattr(result, "setflags"):
            result.setflags(write=False)  # numpy's array in the same memory
        return pytree.tree_map_only(torch.Tensor, lambda t: source.passed_on(t, kind), result)


class Source:
    """Where a folded value came from."""

    def __init__(self, layer: FoldedReads, name: str, value: torch.Tensor) -> None:
        self.layer, self.name, self.value = layer, name, value
        self.versions = self.current_versions()

    def tensor(self, value: torch.Tensor, alias: bool | None) -> FoldedTensor:
        folded = value.as_subclass(FoldedTensor)
        folded.source, folded.alias = self, alias
        return folded

    @property
    def parameter(self) -> nn.Parameter | None:
        return self.layer._parameters.get(self.name)

    def current_versions(self) -> list[int]:
        return [t._version for t in (self.parameter, self.layer.theta) if t is not None and not t.is_inference()]

    def advice(self, what: str) -> str:
        name = f"{type(self.layer).__name__}.{self.name}"
        return f"{what}: {name} is no parameter, it is computed, with max(0, theta) in it; {WAY_OUT}"

    def passed_on(self, result: torch.Tensor, kind: str) -> torch.Tensor:
        if type(result) is not torch.Tensor or result.layout is not torch.strided or is_wrapped(result):
            return result
        if 0 != address(result) == address(self.value):
            return self.tensor(result, True)
        return self.tensor(result, None) if kind in MOVES else result

    def check(self) -> None:
        if self.parameter is None:
            raise ShrinkError(self.advice("it is written to, and has no parameter"))
        if self.versions != self.current_versions():
            raise ShrinkError(self.advice("it is written to, and was read before the parameter changed; read it again"))

    @torch.no_grad()
    def store(self, before: torch.Tensor) -> None:
        """Give the parameter what was written to ``value``, which held ``before``."""
        layer, value, parameter = self.layer, self.value.detach(), self.parameter
        assert parameter is not None  # see check
        dim, offset = (layer.weight_dim, layer.weight_offset) if self.name == "weight" else (0, 0.0)
        theta = layer.repeated_theta
        scale = theta.clamp(min=0).to(value.dtype).reshape([-1 if d == dim else 1 for d in range(value.dim())])
        changed = ~((value == before) | (value.isnan() & before.isnan()))
        needed = (value + offset) / scale - offset if offset else value / scale
        lost = changed & value.isfinite() & ~needed.isfinite()
        if bool(lost.any()):
            feature = int(
                lost.transpose(0, dim).flatten(1).any(1).nonzero()[0] if lost.dim() > 1 else lost.nonzero()[0]
            )
            value.copy_(before)
            name = f"{type(self.layer).__name__}.{self.name}"
            state = f"has theta {float(theta[feature])}, so it holds zeros"
            raise ShrinkError(f"{name}: feature {feature} is written to, but {state}")
        parameter.copy_(torch.where(changed, needed, parameter))
        self.versions = self.current_versions()


def write(
    func: Callable[..., Any], kind: str, written: Sequence[FoldedTensor], args: Sequence[Any], kwargs: dict[str, Any]
) -> Any:
    """Do it to the plain values, then to the parameters."""
    sources = {id(t.source): t.source for t in written if t.alias is not None}
    for source in sources.values():
        source.check()
    own = kind != "data.__set__" and getattr(func, "__module__", None) != "torch.nn.init"  # these keep no graph
    if own and torch.is_grad_enabled() and any(plain(t).requires_grad for t in written):
        raise RuntimeError(
            "a filtered layer's weight that requires grad is used in an in-place operation; torch.no_grad()?"
        )
    before = {key: source.value.detach().clone() for key, source in sources.items()}
    if kind == "data.__set__":
        args[0].detach().copy_(args[1])
        result = None
    else:
        result = func(*args, **kwargs)
    for key, source in sources.items():
        source.store(before[key])
    return None if isinstance(result, torch.Tensor) else result


def plain(folded: torch.Tensor) -> torch.Tensor:
    with DisableTorchFunctionSubclass():
        return folded.as_subclass(torch.Tensor)


def version(folded: FoldedTensor) -> int | None:
    with DisableTorchFunctionSubclass():
        return None if folded.is_inference() else folded._version


def address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def writes(kind: str) -> bool:
    """Whether a function of this name changes its first argument."""
    if kind.startswith("__"):
        return kind == "__setitem__" or kind.startswith("__i") and kind not in READS
    return kind.endswith("_") and not kind.endswith(".__get__")


# Conversion to a layer without the activation, and merges: what an adapter added behind the activation goes in front of it then.
LINEAR_ONLY = {"to_mkldnn", "add_", "__iadd__", "sub_", "__isub__", "addmm_", "baddbmm_", "lerp_", "data.__set__"}
READS = {"__int__", "__index__", "__invert__"}
KEPT = {
    "grad.__get__",
    "grad.__set__",
    "register_hook",
    "register_post_accumulate_grad_hook",
    "retain_grad",
}
MOVES = {"to", "detach", "cpu", "cuda", "float", "double", "half", "bfloat16", "type", "type_as"}


def check_unfolded(weight: torch.Tensor | None, bias: torch.Tensor | None) -> None:
    """For functions that fold the filter in themselves."""
    for tensor in (weight, bias):
        if isinstance(tensor, FoldedTensor):
            kind, name = type(tensor.source.layer).__name__, tensor.source.name
            raise ShrinkError(f"{name} was read from a {kind}, so it has its filter in it already; {WAY_OUT}")
