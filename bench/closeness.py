"""When a provider's result counts as right: judged by the error that the eager unfused composition makes in the same dtype."""

import torch

SLACK = 4.0  # times that error; a wrong result is off by orders of magnitude
FLIPS = 0.05  # of whole networks: one relu whose sign flips moves a gradient by up to 2.6% (3 of 14 seeds of unfused ResNet-18)
FLOOR = 8.0  # times the dtype's epsilon, for results that the composition gets exactly right


def error(value, wanted):
    """Relative L2 error against the float64 tensor ``wanted``; infinite where the shape differs or a NaN stands."""
    if value.shape != wanted.shape:
        return float("inf")
    value, wanted = value.detach().double(), wanted.detach()
    found = float((value - wanted).norm() / wanted.norm().clamp_min(1e-30))
    return found if found == found else float("inf")


def worst(got, expected):
    return max(error(value, wanted) for value, wanted in zip(got, expected, strict=True))


def as_close_as(measured, expected, dtype, least=0.0):
    """check(tensors): the worst error at most SLACK times the worst of ``measured``, both against ``expected`` in float64.

    least: an error that is always allowed.

    The worst of all, not one by one: dtheta from dW inherits oneDNN's error of dW, 10 times that of a sum over activations.
    """
    limit = max(least, SLACK * worst(measured, expected) + FLOOR * torch.finfo(dtype).eps)
    return lambda got: worst(got, expected) <= limit
