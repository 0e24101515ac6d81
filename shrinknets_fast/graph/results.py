"""The tensors in whatever a model returns: nested lists, dicts, named tuples, dataclasses."""

import contextlib
import dataclasses

import torch
from torch.utils import _pytree as pytree


def tensors_in(output):
    """All tensors of ``output``, in order. torch's pytree takes a dataclass it was not told of for a leaf; this looks inside."""
    found = []
    for leaf in pytree.tree_leaves(output):
        if isinstance(leaf, torch.Tensor):
            found.append(leaf)
        elif dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            found += tensors_in([getattr(leaf, field.name) for field in dataclasses.fields(leaf)])
    return found


@contextlib.contextmanager
def returning_tensors(model):
    """Inside, ``model`` returns the tuple of its tensors, which torch.export always understands."""
    handle = model.register_forward_hook(lambda module, args, output: tuple(tensors_in(output)))
    try:
        yield
    finally:
        handle.remove()
