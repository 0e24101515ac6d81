"""A whole module as one op, for types that were given a rule of their own."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import torch

from .op import Op
from .rules.registry import MODULES
from .value import Value

if TYPE_CHECKING:
    from .network import Network
    from .trace import Traced


CASTS = ("aten.to.dtype", "aten._to_copy.default", "aten._assert_tensor_metadata.default")
Call = tuple[list[torch.fx.Node], str, str]  # nodes, path, type name


class ModuleOp(Op):
    """One call of a registered module: ``op.inputs`` is what it is given, ``op.parameter("weight")`` is its own."""

    def __init__(
        self,
        network: Network,
        nodes: Sequence[torch.fx.Node],
        values: dict[torch.fx.Node, Any],
        mode: Traced,
        path: str,
        kind: str,
    ) -> None:
        super().__init__(network, nodes[-1], {}, mode.mode, arguments=False)
        self.path = path
        self.name = kind.rpartition(".")[2]
        inside = set(nodes)
        given = dict.fromkeys(n for node in nodes for n in node.all_input_nodes if n not in inside)
        self.out_nodes = [node for node in nodes if any(user not in inside for user in node.users)]
        self._own = {name: tensor for name, tensor in mode.tensors.values() if tensor is not None}
        own = {id(tensor) for name, tensor in self._own.items() if name.startswith(f"{self.module}.")}
        found = [values[n] for n in given]
        outside = [v for v in found if isinstance(v, Value) and id(v.tensor) not in own]
        self.arguments = {f"input{i}": value for i, value in enumerate(outside)}

    @property
    def module(self) -> str:
        return self.path.partition("@")[0]  # a second call of the same module is "name@1"

    @property
    def label(self) -> str:
        return f"{self.module} ({self.name})"

    @property
    def modules(self) -> list[str]:
        return [
            *(name for name in super().modules if name != self.path and not name.startswith(f"{self.path}.")),
            self.path,
        ]

    def parameter(self, name: str) -> Value:
        """The module's own parameter or buffer, as a value with axes."""
        full = f"{self.module}.{name}" if self.module else name
        return self.network.bind(full, self._own[full])

    def has(self, name: str) -> bool:
        return (f"{self.module}.{name}" if self.module else name) in self._own

    def metas(self) -> Any:
        found = [node.meta["val"] for node in self.out_nodes]
        return found[0] if len(found) == 1 else found


def module_calls(graph: torch.fx.Graph, norms: Collection[str] = ()) -> dict[torch.fx.Node, Call]:
    """{first node: (nodes, path, type name)} for each call of a registered module, the outermost where they nest.

    norms: names of modules that are one op too, where they are called once.
    """
    calls: dict[str, Call] = {}
    found = {}
    for node in graph.nodes:
        for path, kind in (node.meta.get("nn_module_stack") or {}).values():
            kind = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
            if node.op == "call_function" and (kind in MODULES or path.partition("@")[0] in norms):
                calls.setdefault(path, ([], path, kind))[0].append(node)
                break
    for nodes, path, kind in calls.values():
        if kind not in MODULES:  # a cast to the dtype that it has is its input itself, which others read too
            nodes = list(itertools.dropwhile(lambda node: str(node.target) in CASTS, nodes))
        inside = set(nodes)
        results = [node for node in nodes if any(user not in inside for user in node.users)]
        if kind in MODULES or len(results) == 1:
            found[nodes[0]] = (nodes, path, kind)
    return found
