"""What a rule sees of one op: its arguments by their schema's names, and the verbs to relate their axes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from .balance import Balance
from .features import Axis
from .value import Read, RuleError, Step, Value, Zeros

if TYPE_CHECKING:
    from .network import Network

Axes = list[Axis | None]  # one for each dimension
Masks = Sequence[torch.Tensor | None]
Result = Value | list[Value]  # of an op: one value, or several


class Op:
    """One call in the traced graph. ``op["weight"]`` is an argument by its schema's name: a :class:`Value`, or a plain constant.

    Every verb takes None for an axis of which no position can leave, and hands None on.
    """

    def __init__(
        self, network: Network, node: torch.fx.Node, values: dict[torch.fx.Node, Any], mode: str, arguments: bool = True
    ) -> None:
        self.network = network
        self.mode = mode
        self.node = node
        self.results: tuple[Value, ...] = ()
        self.rule: Callable[[Any], Any] | None = None  # that has read it
        self.target: Any = node.target
        self.name = str(node.target).removesuffix(".default")
        self._nodes: dict[str, Any] = {}
        self.arguments: dict[str, Any] = {}  # those that the call gives, by name
        if arguments:
            self._nodes = arguments_of(node)
            self.arguments = {
                name: torch.fx.node.map_arg(arg, lambda n: values[n]) for name, arg in self._nodes.items()
            }

    def __getitem__(self, name: str) -> Any:
        if name in self.arguments:
            return self.arguments[name]
        for argument in self.target._schema.arguments:
            if argument.name == name:
                return argument.default_value
        raise RuleError(f"{self.name} has no argument {name!r}, expected one of {', '.join(self._names())}")

    def get(self, name: str, default: Any = None) -> Any:
        """As ``op[name]``, but ``default`` where this overload has no such argument."""
        return self[name] if name in self._names() else default

    def _names(self) -> list[str]:
        schema = getattr(self.target, "_schema", None)
        return [argument.name for argument in schema.arguments] if schema else list(self.arguments)

    @property
    def inputs(self) -> list[Value]:
        """All tensor arguments, those in lists too."""
        found = []
        for arg in self.arguments.values():
            for value in arg if isinstance(arg, (list, tuple)) else [arg]:
                if isinstance(value, Value):
                    found.append(value)
        return found

    @property
    def numbers(self) -> list[int | float]:
        """All plain numbers among the arguments."""
        return [arg for arg in self.arguments.values() if type(arg) in (int, float)]

    @property
    def several(self) -> bool:
        """Whether the op has several results, as split does."""
        return isinstance(self.metas(), (list, tuple))

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shape of each result."""
        metas = self.metas()
        return [tuple(meta.shape) for meta in (metas if isinstance(metas, (list, tuple)) else [metas])]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the only result."""
        (shape,) = self.shapes
        return shape

    @property
    def modules(self) -> list[str]:
        """The dotted names of the modules whose forward is running, the model's own (empty) first."""
        return [name for name, _ in (self.node.meta.get("nn_module_stack") or {}).values()]

    @property
    def module(self) -> str:
        """The dotted name of the module whose forward calls this op; empty for the model itself."""
        return self.modules[-1] if self.modules else ""

    @property
    def module_type(self) -> str:
        """The class name of that module."""
        stack = self.node.meta.get("nn_module_stack") or {}
        kind = list(stack.values())[-1][1] if stack else ""
        return (kind if isinstance(kind, str) else kind.__qualname__).rpartition(".")[2]

    @property
    def label(self) -> str:
        """The op in words, for reasons: its module's name and its own."""
        short = self.name.split("::")[-1].split(".")
        kind = short[1] if short[0] in ("aten", "shrinknets_fast") and len(short) > 1 else self.name
        return f"{self.module} ({kind})" if self.module else kind

    def node_of(self, name: str) -> torch.fx.Node | None:
        node = self._nodes.get(name)
        return node if isinstance(node, torch.fx.Node) else None

    def nodes_of(self, name: str) -> list[torch.fx.Node]:
        """Of an argument that is a tensor or a list of tensors."""
        nodes = self._nodes.get(name)
        return list(nodes) if isinstance(nodes, (list, tuple)) else [nodes] if isinstance(nodes, torch.fx.Node) else []

    def calls_on(self, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """(op's name, its arguments) of every call that reads the same tensor as this op's argument ``name``."""
        for user in node.users if (node := self.node_of(name)) else ():
            packet = getattr(user.target, "overloadpacket", None)
            yield getattr(packet, "__name__", ""), arguments_of(user)

    def axis(self, value: Value, dim: int) -> Axis | None:
        """The features along one dimension, or None where no position can leave."""
        return value.axis(dim, self.network.features) if value.ndim else None

    def axes(self, value: Value) -> list[Axis | None]:
        """Of all its dimensions."""
        return value.all_axes(self.network.features)

    def fresh_axis(self, size: int) -> Axis:
        """New features."""
        return self.network.features.new_axis(size)

    def rearranged(self, axis: Axis | None, change: Callable[[torch.Tensor], torch.Tensor]) -> Axis | None:
        """The features of ``axis`` at other places. ``change`` takes and gives their numbers, a vector, one for each position."""
        return None if axis is None else self.network.features.axis(change(axis.ids))

    def repeated(self, axis: Axis | None, times: int) -> Axis | None:
        """All of it, several times over, as ``repeat`` does."""
        return axis if times == 1 else self.rearranged(axis, lambda ids: ids.repeat(times))

    def interleaved(self, axis: Axis | None, times: int) -> Axis | None:
        """Each position several times, as ``repeat_interleave`` does."""
        return axis if times == 1 else self.rearranged(axis, lambda ids: ids.repeat_interleave(times))

    def part(self, axis: Axis | None, place: slice) -> Axis | None:
        """Some of its positions."""
        return self.rearranged(axis, lambda ids: ids[place])

    def joined(self, parts: Sequence[tuple[Axis | None, int]]) -> Axis | None:
        """One behind the other, (axis, size) each; where one cannot shrink the others still may."""
        if all(axis is None for axis, _ in parts):
            return None
        known = [
            axis or self.pinned(self.fresh_axis(size), f"cannot shrink where {self.label} joins it")
            for axis, size in parts
        ]
        return self.network.features.axis(torch.cat([axis.ids for axis in known]))

    def unify(self, first: Axis | None, second: Axis | None) -> None:
        """The two axes hold the same features, position by position. One that cannot shrink keeps the other."""
        if first is not None and second is not None and len(first) != len(second):
            raise RuleError(f"unify: axes of {len(first)} and {len(second)} positions, expected as many")
        self.network.features.unify(first, second, f"meets an axis that cannot shrink in {self.label}")

    def tie(self, axis: Axis | None, size: int, neighbours: bool = False) -> Axis | None:
        """Features that leave together: ``size`` neighbours, or those at the same place of each block of ``size``.

        Returns an axis of one feature for each set.
        """
        if axis is None or not len(axis):
            return axis
        ids = axis.ids.reshape(-1, size) if neighbours else axis.ids.reshape(-1, size).t()
        self.network.features.unify_ids(ids[:, :1].expand_as(ids).reshape(-1), ids.reshape(-1))
        return self.network.features.axis(ids[:, 0])

    def balance(self, axis: Axis | None, blocks: int, slots: Axis | None = None, rows: Axis | None = None) -> None:
        """Equally many features leave each of the ``blocks`` equal blocks of this axis, at whatever positions.

        slots, rows: the axes of a weight whose columns are the features of one block, another one for each block of its rows.
        """
        if axis is not None and len(axis):
            self.network.features.balances.append(Balance(axis, blocks, self.label, slots, rows))

    def pin(self, axis: Axis | None, reason: str) -> None:
        """The features of this axis never leave, because of ``reason``."""
        self.network.features.pin(axis, reason)

    def pinned(self, axis: Axis, reason: str) -> Axis:
        self.pin(axis, reason)
        return axis

    def pin_all(self, reason: str) -> None:
        """No feature of any input leaves."""
        for value in self.inputs:
            for axis in self.axes(value):
                self.pin(axis, reason)

    def doubt(self, axis: Axis | None) -> None:
        """The op's constants may be written into the user's code: try on a fake copy whether they follow this axis."""
        if axis is not None:
            self.network.features.doubts.append((axis, self.label))

    def makes(self, axis: Axis | None) -> None:
        """The op writes the features of this axis."""
        if axis is not None:
            self.network.makes.append((axis, self.label))

    def reads(self, value: Value, dim: int) -> None:
        """The op adds up the positions of this axis, so it loses nothing with a zero."""
        if self.axis(value, dim) is not None:
            self.network.reads.append(Read(value, dim % value.ndim, self))

    def counts(self, result: Value, dim: int, reason: str) -> None:
        """The op puts all positions of this axis together, but those at which a filter makes its own ``result`` zero."""
        if self.axis(result, dim) is not None:
            self.network.reads.append(Read(result, dim % result.ndim, self, reason))

    def reads_product(self, *places: tuple[Value, int]) -> None:
        """The op adds up products, one factor from each (value, dim): it loses nothing where one factor is zero."""
        axes = [self.axis(value, dim) for value, dim in places]
        for axis in axes[1:]:
            self.unify(axes[0], axis)
        if axes[0] is None or any(axis is None for axis in axes):
            return
        product = Value(axes[0].ids.shape, None, None, [axes[0]])

        def zero(zeros: Zeros) -> list[Masks]:
            known = [zeros(value, dim % value.ndim) for value, dim in places]
            masks = [mask for mask in known if mask is not None]
            return [[torch.stack(masks).any(0) if masks else None]]

        self.network.steps.append(Step(self, (product,), zero))
        self.network.reads.append(Read(product, 0, self))

    def metas(self) -> Any:
        """What tracing knows of the results: one fake tensor, or a sequence of them."""
        return self.node.meta.get("val")

    def output(self, axes: Sequence[Axis | None], zero: Callable[[Zeros], Masks] | None = None) -> Value:
        """The op's result with these axes. zero(zeros) gives, per dimension, a bool mask of zero positions or None."""
        if self.several:
            raise RuleError(f"it has {len(self.shapes)} results, expected op.outputs")
        return self.outputs([axes], zero and (lambda zeros: [zero(zeros)]))[0]

    def outputs(
        self, all_axes: Sequence[Sequence[Axis | None]], zero: Callable[[Zeros], Sequence[Masks]] | None = None
    ) -> list[Value]:
        """The same for an op with several results."""
        metas = self.metas()
        metas = metas if isinstance(metas, (list, tuple)) else [metas]
        if len(metas) != len(all_axes):
            raise RuleError(f"it gives axes for {len(all_axes)} results, expected {len(metas)}")
        values = [Value(meta.shape, meta.dtype, None, axes) for meta, axes in zip(metas, all_axes, strict=True)]
        for value in values:
            self._check(value)
        self.results = tuple(values)
        if zero is not None:
            self.network.steps.append(Step(self, self.results, zero))
        return values

    def fixed(self) -> Any:
        """Results of which nothing can leave."""
        metas = self.metas()
        values = []
        for meta in metas if self.several else [metas]:
            known = isinstance(meta, torch.Tensor)
            values.append(Value(meta.shape if known else (), meta.dtype if known else None, None))
        self.results = tuple(values)
        return values if self.several else values[0]

    def _check(self, value: Value) -> None:
        sizes = [None if axis is None else len(axis) for axis in value.axes]
        if len(sizes) != value.ndim or any(n not in (None, size) for n, size in zip(sizes, value.shape, strict=True)):
            raise RuleError(f"it gives axes of {sizes} features for a result of shape {value.shape}")


def arguments_of(node: torch.fx.Node) -> dict[str, Any]:
    """What a call in the graph gives, by its schema's names."""
    schema = getattr(node.target, "_schema", None)
    names = [a.name for a in schema.arguments] if schema else [str(i) for i in range(len(node.args))]
    return dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
