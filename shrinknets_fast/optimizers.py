"""What the package needs to know about optimizers: which state belongs to a parameter, and how dead thetas stay dead."""

import torch
from torch.utils._pytree import tree_leaves

from .errors import ShrinkError
from .ops.bury import bury_

REFUSED = ("LBFGS", "SparseAdam")  # one flat history over all parameters; state that is not shaped like a parameter


def checked_optimizers(optimizers):
    """A tuple of the optimizers given (one, or several), or an error that names the one that cannot be followed."""
    found = (optimizers,) if isinstance(optimizers, torch.optim.Optimizer) else tuple(optimizers)
    for optimizer in found:
        name = type(optimizer).__name__
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise ShrinkError(f"optimizers holds a {name}, expected torch.optim.Optimizer instances")
        if name in REFUSED:
            raise ShrinkError(
                f"optimizers holds {name}, whose state is not kept feature by feature; it cannot be shrunk"
            )
    return found


def state_tensors(optimizer, parameter):
    """{name: tensor} of the optimizer's state that goes where ``parameter`` goes.

    Each of its dimensions is the parameter's, or one entry for all (Adafactor's row and column statistics). Counters are left
    out; anything else is an error that names it.
    """
    shaped = {}
    for name, value in optimizer.state.get(parameter, {}).items():
        if isinstance(value, (list, tuple, dict)) and any(
            isinstance(v, torch.Tensor) and v.dim() for v in tree_leaves(value)
        ):
            raise ShrinkError(
                f"{type(optimizer).__name__}: state {name!r} is a {type(value).__name__} of tensors, expected tensors shaped "
                "like the parameter; this optimizer's state cannot be shrunk"
            )
        if not isinstance(value, torch.Tensor) or value.dim() == 0:
            continue
        fits = value.dim() == parameter.dim() and all(
            mine in (size, 1) for mine, size in zip(value.shape, parameter.shape, strict=True)
        )
        if not fits:
            raise ShrinkError(
                f"{type(optimizer).__name__}: state {name!r} has shape {tuple(value.shape)}, expected the parameter's "
                f"{tuple(parameter.shape)}; this optimizer's state cannot be shrunk"
            )
        shaped[name] = value
    return shaped


def parameters_of(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def bury(optimizer, thetas):
    """Set every ``theta <= 0`` to exactly 0 and zero its optimizer state, so that nothing moves it again.

    Without this, momentum, Nesterov's look-ahead and coupled weight decay bring dead features back.
    """
    wanted = {id(theta) for theta in thetas}
    held = [theta for theta in parameters_of(optimizer) if id(theta) in wanted]
    if held:
        bury_(
            [(theta, [v for v in state_tensors(optimizer, theta).values() if v.shape == theta.shape]) for theta in held]
        )
