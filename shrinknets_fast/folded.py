"""``weight`` and ``bias`` of a filtered layer are those of its function: with the filter in them.

Tools that fuse, merge, prune or convert layers ask ``isinstance(m, nn.Linear)`` and use ``m.weight``. The parameter alone is
another function's weight, off by the factor max(0, theta) of each feature. So the attribute is computed, as torch's own
parametrizations compute theirs; ``parameters()``, ``state_dict()`` and :func:`unfolded` have the parameters themselves.
"""

import contextlib
import contextvars

import torch

from .errors import ShrinkError
from .folded_tensor import WAY_OUT, FoldedTensor, Source
from .ops.filter import filter
from .ops.fold import fold

__all__ = ["FoldedReads", "is_unfolded", "unfolded"]

_unfolded = contextvars.ContextVar("unfolded", default=False)
PARAMETRIZED = "parametrize a plain layer, and put a Filter behind it"


@contextlib.contextmanager
def unfolded():
    """Inside, ``weight`` and ``bias`` of filtered layers are the parameters: to initialise, to assign, to see their gradients."""
    token = _unfolded.set(True)
    try:
        yield
    finally:
        _unfolded.reset(token)


def is_unfolded():
    return not torch.compiler.is_compiling() and _unfolded.get()


def folded(layer, name):
    value, theta = layer.raw(name), layer.theta
    if value is not None:
        value = fold(value, None, theta)[0]
    elif name == "weight":  # a batch norm without affine parameters still has its filter
        value = filter(torch.ones_like(theta), theta, 0)
    if torch.compiler.is_compiling() or type(value) is not torch.Tensor or torch._C._are_functorch_transforms_active():
        return value
    return Source(layer, name, value).tensor(value, False)


def computed(name):
    """A property that reads the parameter ``name`` with the layer's filter folded in."""

    def read(layer):
        if name not in layer._parameters and name not in layer.__dict__:
            raise AttributeError(name)  # torch.nn.Module.__getattr__ then says it in its own words
        if "theta" not in layer._parameters or is_unfolded():
            return layer.raw(name)
        try:
            return folded(layer, name)
        except AttributeError as error:  # would send Python to the parameter
            raise RuntimeError(f"{type(layer).__name__}.{name} cannot be read: {error}") from error

    def write(layer, value):  # pruning's; torch.nn.Module.__setattr__ itself takes parameters, and refuses the rest
        layer.__dict__[name] = value

    def delete(layer):
        del layer.__dict__[name]

    return property(read, write, delete, f"``{name}`` with max(0, theta) in it; see :func:`unfolded`.")


class FoldedReads:
    """Mixin of the filtered layers that have a weight and a bias."""

    __jit_unused_properties__ = ["weight", "bias", "alive"]
    weight = computed("weight")
    bias = computed("bias")

    def raw(self, name):
        """The parameter ``name``, or what pruning has put in its place; None where there is none."""
        value = self._parameters.get(name)
        return self.__dict__.get(name) if value is None else value

    def raw_parameters(self, input):
        """(weight, bias, theta) to compute with."""
        if isinstance(input, torch.fx.Proxy):
            raise ShrinkError(
                f"{type(self).__name__} cannot be traced by torch.fx, which reads weights by name and would filter them again; "
                "trace what fold_filters(model) gives, or use torch.export"
            )
        return self.raw("weight"), self.raw("bias"), self.theta

    def register_parameter(self, name, param):
        if isinstance(param, FoldedTensor):
            if param.source.layer is not self:
                raise ShrinkError(param.source.advice(f"register_parameter({name!r})"))
            param = param.source.parameter  # as pruning keeps it, under another name
        elif name in ("weight", "bias") and param is not None and not is_unfolded():
            if name in self._parameters and "theta" in self._parameters:
                kind = f"{type(self).__name__}.{name}"
                raise ShrinkError(f"{kind} is assigned, and the layer would multiply it by max(0, theta); {WAY_OUT}")
        super().register_parameter(name, param)

    def __delattr__(self, name):
        if name in ("weight", "bias") and name in self._parameters:  # as parametrizations begin
            raise ShrinkError(f"{type(self).__name__}.{name} cannot be computed in another way; {PARAMETRIZED}")
        super().__delattr__(name)

    def reset_parameters(self):
        with unfolded():
            super().reset_parameters()

    def _load_from_state_dict(self, *args):
        with unfolded():  # assign=True sets the attributes
            super()._load_from_state_dict(*args)
