"""Both traced modes read into one description: what each op makes and reads, and how zeros pass through it."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..errors import warn
from . import rules
from .balance import settle_balances
from .features import Axis, FeatureSpace
from .module_op import ModuleOp, module_calls
from .op import Op
from .rule_faults import by_rule, zeros_by_rule
from .rules.registry import MODULES
from .splits import Choices, Splits
from .trace import Traced
from .value import Read, Step, Value, Zeros
from .written_out import Norm


@dataclass
class Bound:
    """A parameter or buffer of the model that the graph uses, under all its names."""

    tensor: torch.Tensor
    value: Value
    names: list[str] = field(default_factory=list)
    shape: tuple[int, ...] = ()


class Network:
    """The features of a model, and everything that happens to them in its forward, in order."""

    def __init__(
        self, traced: Iterable[Traced], choices: Choices | None = None, norms: Mapping[str, Norm] | None = None
    ) -> None:
        self.features = FeatureSpace()
        self.splits = Splits(choices or {})
        self.broadcast: list[Axis | None] = []  # what is as often as it is needed, by an expand
        self.norms = norms or {}  # modules that are read as one op
        self.bound: dict[int, Bound] = {}  # id(tensor) -> Bound
        self.reads: list[Read] = []
        self.makes: list[tuple[Axis, str]] = []  # (axis, label): who writes the features of this axis
        self.steps: list[Step] = []
        self.ops: list[Op] = []  # every op that was read, in order
        self.returned: set[Value] = set()  # the values that are the model's outputs
        # module name -> the values of the ops in its own forward, one list per mode
        self.outputs: dict[str, list[list[Value]]] = {}
        self.unknown: set[str] = set()
        for mode in traced:
            self._read_graph(mode)
        if self.unknown:
            names = ", ".join(sorted(self.unknown))
            warn(f"no rule for {names}: what reaches it is kept alive (see register_rule)")
        self.features.settle()
        settle_balances(self)

    def memberships(self) -> torch.Tensor:
        """A number for each feature, the same for those that the same dimensions of the same tensors have; 0 for none."""
        signature = torch.zeros(self.features.count, dtype=torch.int64)
        axes = [axis for bound in self.bound.values() for axis in bound.value.axes if axis is not None]
        for number, axis in enumerate(axes, 1):
            signature[axis.ids] = signature[axis.ids] * 1000003 + number
        kinds, group = torch.unique(torch.cat([torch.zeros(1, dtype=torch.int64), signature]), return_inverse=True)
        return (group - group[0])[1:] % len(kinds)

    def bind(self, name: str, tensor: torch.Tensor) -> Value:
        """The graph's value for a parameter or buffer; the same tensor under two names, or in two modes, is one value."""
        bound = self.bound.get(id(tensor))
        if bound is None:
            bound = self.bound[id(tensor)] = Bound(
                tensor, Value(tensor.shape, tensor.dtype, tensor), [], tuple(tensor.shape)
            )
        if name not in bound.names:
            bound.names.append(name)
        return bound.value

    def _read_graph(self, mode: Traced) -> None:
        values: dict[torch.fx.Node, Any] = {}
        storage: dict[torch.fx.Node, torch.fx.Node] = {}
        outputs: dict[str, list[Value]] = {}
        calls = module_calls(mode.graph, self.norms)
        order = {node: i for i, node in enumerate(mode.graph.nodes)}
        for node in mode.graph.nodes:
            if node.op == "placeholder":
                name, tensor = mode.tensors.get(node.name, ("", None))
                values[node] = constant(node) if tensor is None else self.bind(name, tensor)
            elif node.op == "output":
                for value in tree_values(node.args, values):
                    self.returned.add(value)
                    for axis in value.all_axes(self.features):
                        self.features.pin(axis, "is the model's output")
            elif node in values:  # inside a module that has a rule of its own
                continue
            elif node in calls:
                op = self._read_module(*calls[node], values, mode)
                if op.module in self.norms:
                    outputs.setdefault(op.module, []).extend(op.results)
            elif node.op == "call_function" and node.target is operator.getitem:
                values[node] = values[node.args[0]][node.args[1]]
                storage[node] = storage.get(node.args[0], node.args[0])
            elif node.op == "call_function":
                op = Op(self, node, values, mode.mode)
                values[node] = self._read_op(op)
                self.ops.append(op)
                self._follow_writes(op, values, storage, order)
                if isinstance(values[node], Value) and values[node].ndim:  # a counter's update is no output
                    outputs.setdefault(op.module, []).append(values[node])
            elif not node.name.startswith("_guards"):
                values[node] = self._unknown(Op(self, node, values, mode.mode))
        for module, made in outputs.items():
            self.outputs.setdefault(module, []).append(made)

    def _read_op(self, op: Op) -> Any:
        rule = rules.find(op)
        result = self._unknown(op) if rule is None else by_rule(rule, op)
        return op.fixed() if result is None else result

    def _read_module(
        self, nodes: Sequence[torch.fx.Node], path: str, kind: str, values: dict[torch.fx.Node, Any], mode: Traced
    ) -> Op:
        op = ModuleOp(self, nodes, values, mode, path, kind)
        result = by_rule(MODULES[kind] if kind in MODULES else self.norms[op.module].read, op)
        values.update(dict.fromkeys(nodes))
        values.update(zip(op.out_nodes, result if isinstance(result, (list, tuple)) else [result], strict=True))
        self.ops.append(op)
        return op

    def _unknown(self, op: Op) -> Any:
        self.unknown.add(op.name)
        op.pin_all(f"reaches {op.label}, an op without a rule")
        return op.fixed()

    def _follow_writes(
        self,
        op: Op,
        values: dict[torch.fx.Node, Any],
        storage: dict[torch.fx.Node, torch.fx.Node],
        order: Mapping[torch.fx.Node, int],
    ) -> None:
        """An in-place op: its output has the new values. Who reads them by an older name, or by a view, is not followed."""
        schema = getattr(op.target, "_schema", None)
        if schema is None:
            return
        for argument in schema.arguments:
            node = op.node_of(argument.name)
            aliases = (
                argument.alias_info is not None or "dropout" in op.name
            )  # it hands its input on in evaluation mode
            if not aliases or node is None:
                continue
            root = storage.setdefault(op.node, storage.get(node, node))
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            later = [n for n in values if storage.get(n, n) is root and n is not op.node]
            if any(order[user] > order[op.node] for n in later for user in n.users):
                reason = f"reaches {op.label}, which writes in place through a view"
                op.pin_all(reason)
                for n in later:
                    for value in flat([values[n]]):
                        for axis in value.all_axes(self.features):
                            self.features.pin(axis, reason)
                    values[n] = constant(n)

    def zeros(
        self, dead: Mapping[int, torch.Tensor], supposed: Mapping[Value, int] | None = None, held: bool = False
    ) -> Zeros:
        """Where each value is exactly zero. ``dead``: {id(theta): bool mask}. Returns a :class:`Zeros`.

        supposed: {value: dimension} that are taken to be zero everywhere along it, to ask where a filter would help.
        held: whether zeros that parameters and buffers hold now count too.
        """
        state = Zeros(self.features.count, supposed or {})
        for bound in self.bound.values() if held else ():
            state.record([bound.value], [held_zeros(bound)])
        for key in dead.keys() & self.bound.keys():
            state.record([self.bound[key].value], [[dead[key]]])
        for step in self.steps:
            state.record(step.outputs, zeros_by_rule(step, state))
        return state


def idle_ops(network: Network, zeros: Zeros) -> set[Op]:
    """The ops of whose outputs nobody wants anything, because a closed gate or a dead layer is all that follows."""
    users: dict[Value, list[Op]] = {}
    for op in network.ops:
        for value in op.inputs:
            users.setdefault(value, []).append(op)
    idle = set()
    for op in reversed(network.ops):

        def unwanted(value: Value) -> bool:
            if value in network.returned:
                return False
            followers = users.get(value, [])
            return zeros.everywhere(value) or (bool(followers) and all(user in idle for user in followers))

        if op.results and all(unwanted(value) for value in op.results):
            idle.add(op)
    return idle


def held_zeros(bound: Bound) -> list[torch.Tensor | None]:
    """Per dimension, the positions at which the tensor holds nothing but zeros now."""
    nonzero = bound.tensor.detach() != 0
    others = [[k for k in range(nonzero.dim()) if k != d] for d in range(nonzero.dim())]
    return [
        None if axis is None else ~(nonzero.any(dim=dims) if dims else nonzero).cpu()
        for axis, dims in zip(bound.value.axes, others, strict=True)
    ]


def constant(node: torch.fx.Node) -> Value:
    """The value of a model input or a constant: nothing of it can leave."""
    meta = node.meta.get("val")
    shape, dtype = (tuple(meta.shape), meta.dtype) if isinstance(meta, torch.Tensor) else ((), None)
    return Value(shape, dtype, None)


def tree_values(args: Any, values: dict[torch.fx.Node, Any]) -> list[Value]:
    found = []
    torch.fx.node.map_arg(args, lambda node: found.append(values[node]))
    return flat(found)


def flat(found: Iterable[Any]) -> list[Value]:
    """The values among these, those of ops with several results too."""
    found = [v for value in found for v in (value if isinstance(value, (list, tuple)) else [value])]
    return [value for value in found if isinstance(value, Value)]
