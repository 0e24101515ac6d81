"""epilogue: the filtered linear layer as the library's product and one pass over its output.

With ``z = x weight^T + bias`` and ``s = max(0, theta)``: ``out = act(z s)``, act the identity or relu. For the upstream gradient
grad, with ``h = grad [z > 0]`` (h = grad without relu)::

    dz = h s      dx = dz weight      dweight = dz^T x      dbias = sum of dz's rows      dtheta = [theta > 0] sum of (h z)'s rows

No pass over the weights: for layers with more weights than outputs, where folding would cost more. Saved are x, the parameters
and z, which relu keeps in the output's place. Dead features give exact zeros whatever they hold, dx included. x: (*, in); x,
weight and bias of one dtype; theta's apart. Source: ShrinkNets (Leclerc, Fernandez, Madden), equation 1.
"""

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

_filter = torch.ops.shrinknets_fast.filter
_filter_backward = torch.ops.shrinknets_fast.filter_backward


LIBRARY = torch.library.Library("shrinknets_fast", "FRAGMENT")
LIBRARY.define("alive_product(Tensor grad, Tensor weight, Tensor theta) -> Tensor")
_alive_product = torch.ops.shrinknets_fast.alive_product


@torch.library.impl(LIBRARY, "alive_product", "CompositeExplicitAutograd")
def _(grad, weight, theta):
    """``grad @ weight`` for a grad that is zero where theta is dead, and none of weight's dead rows, since 0 * NaN is NaN.

    On the CPU looking at the dead rows first is cheaper than a pass over all of weight; elsewhere it would have to wait.
    """
    dead = theta <= 0
    if not weight.is_cpu or (dead.any() and not weight[dead].isfinite().all()):
        weight = torch.where(dead[:, None], torch.zeros((), dtype=weight.dtype, device=weight.device), weight)
    return grad @ weight


@torch.library.register_fake("shrinknets_fast::alive_product")
def _(grad, weight, theta):
    return grad.new_empty(*grad.shape[:-1], weight.shape[1])


class Epilogue(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, theta, relu):  # with setup_context, every call binds a signature: 10 us
        z = F.linear(x, weight, bias)
        out = _filter(z, theta, -1)
        ctx.relu = relu
        ctx.save_for_backward(x, weight, theta, z)
        return out.relu_() if relu else out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight, theta, z = ctx.saved_tensors
        if ctx.relu:
            grad = torch.ops.aten.threshold_backward(grad, z, 0)
        dz, dtheta = _filter_backward(grad, z, theta, -1)
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        flat = dz.reshape(dz.shape[:-1].numel(), dz.shape[-1])
        dx = _alive_product(dz, weight, theta) if wants_x else None
        dweight = flat.t() @ x.reshape(len(flat), x.shape[-1]) if wants_weight else None
        return dx, dweight, flat.sum(0) if wants_bias else None, dtheta, None


def epilogue(x, weight, bias, theta, relu=False):
    """``act((x weight^T + bias) * max(0, theta))``; see the module's docstring. Differentiable once."""
    return Epilogue.apply(x, weight, bias, theta, relu)
