"""Loading a shrunk checkpoint into a fresh model of the original size."""

import torch

from .errors import ShrinkError
from .graph.modules import depthwise_names, sync_sizes

__all__ = ["load_state_dict"]


@torch.no_grad()
def load_state_dict(model, state_dict):
    """Resize ``model`` to the sizes in ``state_dict``, then load it strictly. Parameters keep their identity.

    model: has the same names, and every tensor is at least as large as in the checkpoint. Do this before the optimizer has
    state. Raises ShrinkError, with nothing changed, where names, dimensions or sizes do not fit.
    """
    own = model.state_dict(keep_vars=True)
    missing, unexpected = sorted(own.keys() - state_dict.keys()), sorted(state_dict.keys() - own.keys())
    if missing or unexpected:
        raise ShrinkError(f"load_state_dict: missing {missing[:5]}, unexpected {unexpected[:5]}")
    resized = []
    for name, tensor in own.items():
        if not isinstance(tensor, torch.Tensor):
            continue
        wanted, present = tuple(state_dict[name].shape), tuple(tensor.shape)
        if len(wanted) != len(present) or any(w > p for w, p in zip(wanted, present, strict=True)):
            raise ShrinkError(f"load_state_dict: {name} has shape {wanted}, expected at most {present}")
        if wanted != present:
            resized.append((tensor, wanted))
    depthwise = depthwise_names(model)
    for tensor, shape in resized:
        tensor.set_(torch.empty(shape, dtype=tensor.dtype, device=tensor.device))
        tensor.grad = None
    sync_sizes(model, depthwise)
    return model.load_state_dict(state_dict)
