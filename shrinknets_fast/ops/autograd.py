"""How an ``autograd.Function`` is called: 16 us less on the host, both passes, than its own ``apply`` takes."""

import torch


def eager():
    """Neither ``torch.compile`` nor ``torch.export`` nor a transform of ``torch.func`` nor a mode for functions is looking."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    return not torch._C._len_torch_function_stack()


def direct(function):
    """``function``, whose backward is ``once_differentiable``, without the context that only ``create_graph`` needs: 2 us."""

    def backward(ctx, *gradients):
        return (function.backward if torch.is_grad_enabled() else function.backward.__wrapped__)(ctx, *gradients)

    methods = {"forward": staticmethod(function.forward), "backward": staticmethod(backward)}
    return type(function.__name__, (torch.autograd.Function,), methods)


def applied(function):
    """A call of ``function``, written with ``setup_context``, without the binding of a signature at each call: 14 us.

    ``torch.func``'s transforms, ``torch.compile`` and ``torch.export`` get ``function`` itself.
    """

    def forward(ctx, *inputs):
        output = function.forward(*inputs)
        function.setup_context(ctx, inputs, output)
        return output

    quick = direct(type(function.__name__, (), {"forward": forward, "backward": staticmethod(function.backward)}))
    return lambda *inputs: (quick if eager() else function).apply(*inputs)
