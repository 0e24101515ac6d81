"""What a rule sees of one op: its arguments by their schema's names, and the verbs to relate their axes."""

from dataclasses import dataclass

import torch

from ..errors import ShrinkError


class Value:
    """A tensor of the graph: for each dimension an :class:`Axis`, or None where no position can leave.

    A parameter's or buffer's axes are made when a rule first asks for them.
    """

    __slots__ = ("axes", "dtype", "shape", "tensor")

    def __init__(self, shape, dtype, tensor, axes=None):
        self.shape = tuple(checked_size(size) for size in shape)
        self.dtype = dtype
        self.tensor = tensor
        self.axes = list(axes) if axes is not None else [None] * len(self.shape)

    @property
    def ndim(self):
        return len(self.shape)

    def axis(self, dim, features):
        dim = dim % self.ndim
        if self.axes[dim] is None and self.tensor is not None:
            self.axes[dim] = features.new_axis(self.shape[dim])
        return self.axes[dim]

    def all_axes(self, features):
        return [self.axis(dim, features) for dim in range(self.ndim)]


def checked_size(size):
    try:
        return int(size)
    except Exception as error:  # torch's is a page of advice for its own developers
        message = (
            f"a tensor of the forward has a size that depends on values ({size}), as a mask or nonzero() makes them"
        )
        raise ShrinkError(f"{message}; expected sizes that do not: torch.where, or masked sums") from error


class Op:
    """One call in the traced graph. ``op["weight"]`` is an argument by its schema's name: a Value, or a plain constant."""

    def __init__(self, network, node, values, mode, arguments=True):
        self.network = network
        self.mode = mode
        self.node = node
        self.results = ()
        self.target = node.target
        self.name = str(node.target).removesuffix(".default")
        self._nodes, self._args = {}, {}
        if not arguments:
            return
        self._nodes = dict(zip(argument_names(node), node.args, strict=False)) | dict(node.kwargs)
        self._args = {name: torch.fx.node.map_arg(arg, lambda n: values[n]) for name, arg in self._nodes.items()}

    @property
    def modules(self):
        """The dotted names of the modules whose forward is running, the model's own (empty) first."""
        return [name for name, _ in (self.node.meta.get("nn_module_stack") or {}).values()]

    @property
    def module(self):
        """The dotted name of the module whose forward calls this op; empty for the model itself."""
        return self.modules[-1] if self.modules else ""

    @property
    def module_type(self):
        """The class name of that module."""
        stack = self.node.meta.get("nn_module_stack") or {}
        kind = list(stack.values())[-1][1] if stack else ""
        return (kind if isinstance(kind, str) else kind.__qualname__).rpartition(".")[2]

    @property
    def label(self):
        short = self.name.split("::")[-1].split(".")
        kind = short[1] if short[0] in ("aten", "shrinknets_fast") and len(short) > 1 else self.name
        return f"{self.module} ({kind})" if self.module else kind

    def __getitem__(self, name):
        if name in self._args:
            return self._args[name]
        for argument in self.target._schema.arguments:
            if argument.name == name:
                return argument.default_value
        raise KeyError(name)

    def node_of(self, name):
        node = self._nodes.get(name)
        return node if isinstance(node, torch.fx.Node) else None

    @property
    def inputs(self):
        """All tensor arguments, those in lists too."""
        found = []
        for arg in self._args.values():
            for value in arg if isinstance(arg, (list, tuple)) else [arg]:
                if isinstance(value, Value):
                    found.append(value)
        return found

    def axis(self, value, dim):
        return value.axis(dim, self.network.features) if value.ndim else None

    def new_axis(self, ids):
        return self.network.features.axis(ids)

    def fresh_axis(self, size):
        return self.network.features.new_axis(size)

    def unify(self, first, second):
        """The two axes hold the same features, position by position."""
        self.network.features.unify(first, second, f"meets an axis that cannot shrink in {self.label}")

    def unify_ids(self, first, second):
        self.network.features.unify_ids(first, second)

    def pin(self, axis, reason):
        """The features of this axis never leave, because of ``reason``."""
        self.network.features.pin(axis, reason)

    def doubt(self, axis):
        """The op's constants may be written into the user's code: try on a fake copy whether they follow this axis."""
        if axis is not None:
            self.network.features.doubts.append((axis, self.label))

    def pin_all(self, reason):
        for value in self.inputs:
            for axis in value.all_axes(self.network.features):
                self.pin(axis, reason)

    def reads(self, value, dim):
        """The op adds up the positions of this axis, so it loses nothing with a zero."""
        if self.axis(value, dim) is not None:
            self.network.reads.append(Read(value, dim % value.ndim, self))

    def reads_product(self, *places):
        """The op adds up products, one factor from each (value, dim): it loses nothing where one factor is zero."""

        axes = [self.axis(value, dim) for value, dim in places]
        for axis in axes[1:]:
            self.unify(axes[0], axis)
        if any(axis is None for axis in axes):
            return
        product = Value(axes[0].ids.shape, None, None, [axes[0]])

        def zero(zeros):
            known = [zeros(value, dim % value.ndim) for value, dim in places]
            known = [mask for mask in known if mask is not None]
            return [[torch.stack(known).any(0) if known else None]]

        self.network.steps.append(Step((product,), zero))
        self.network.reads.append(Read(product, 0, self))

    def makes(self, axis):
        """The op writes the features of this axis."""
        if axis is not None:
            self.network.makes.append((axis, self.label))

    def metas(self):
        """What tracing knows of the results: one fake tensor, or a sequence of them."""
        return self.node.meta.get("val")

    def output(self, axes, zero=None):
        """The op's result with these axes. zero(zeros) gives, per dimension, a bool mask of zero positions or None."""
        meta = self.metas()
        value = Value(meta.shape, meta.dtype, None, axes)
        self._check(value)
        self._step((value,), (lambda zeros: [zero(zeros)]) if zero else None)
        return value

    def outputs(self, all_axes, zero=None):
        """The same for an op with several results."""
        metas = self.metas()
        values = [Value(m.shape, m.dtype, None, axes) for m, axes in zip(metas, all_axes, strict=True)]
        for value in values:
            self._check(value)
        self._step(tuple(values), zero)
        return values

    def fixed(self):
        """Results of which nothing can leave."""
        metas = self.metas()
        single = not isinstance(metas, (list, tuple))
        values = []
        for meta in [metas] if single else metas:
            known = isinstance(meta, torch.Tensor)
            values.append(Value(meta.shape if known else (), meta.dtype if known else None, None))
        self.results = tuple(values)
        return values[0] if single else values

    def _step(self, values, zero):
        self.results = values
        if zero is not None:
            self.network.steps.append(Step(values, zero))

    def _check(self, value):
        for dim, axis in enumerate(value.axes):
            if axis is not None and len(axis) != value.shape[dim]:
                raise AssertionError(
                    f"rule of {self.label}: axis {dim} has {len(axis)} features for shape {value.shape}"
                )


def argument_names(node):
    schema = getattr(node.target, "_schema", None)
    return [a.name for a in schema.arguments] if schema else [str(i) for i in range(len(node.args))]


@dataclass(frozen=True)
class Read:
    """``op`` adds up the positions of this axis: it loses nothing where they are zero, and needs all others."""

    value: Value
    dim: int
    op: Op


@dataclass(frozen=True)
class Step:
    """One op's outputs and the function that tells where they are zero, given where its inputs are."""

    outputs: tuple
    zero: object
