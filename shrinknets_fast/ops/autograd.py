"""How an ``autograd.Function`` is called: 16 us less on the host, both passes, than its own ``apply`` takes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from ..insides import function_modes_active, is_tracing, transforms_active


def eager() -> bool:
    """Nobody is looking: not ``torch.compile``, ``torch.export``, ``torch.jit``, a transform of ``torch.func`` or a mode."""
    if torch.compiler.is_compiling() or transforms_active() or is_tracing():
        return False
    return not function_modes_active()


class Refusal(torch.autograd.Function):
    """Its first ``count`` tensors; no gradient goes through it."""

    generate_vmap_rule = True

    @staticmethod
    def forward(count: int, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(t.view_as(t) for t in tensors[:count])

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise RuntimeError("a filtered layer's gradient is not differentiable itself (once_differentiable)")


def once(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A backward whose results refuse to be differentiated, whatever they depend on: the upstream gradient or what was saved.

    torch's own ``once_differentiable`` refuses only where the upstream gradient requires one: a gradient penalty would be wrong.
    """

    @functools.wraps(backward)
    def refusing(ctx: Any, *gradients: Any) -> Any:
        with torch.no_grad():
            results = backward(ctx, *gradients)
        if not torch.is_grad_enabled():
            return results
        results = results if isinstance(results, tuple) else (results,)
        given = [r for r in results if r is not None]
        guarded = iter(Refusal.apply(len(given), *given, *gradients, *ctx.saved_tensors))
        return tuple(None if r is None else next(guarded) for r in results)

    return refusing


def direct(function: Any) -> Any:
    """``function``, whose backward is wrapped by :func:`once`, without what only ``create_graph`` needs: 2 us."""

    def backward(ctx: Any, *gradients: Any) -> Any:
        return (function.backward if torch.is_grad_enabled() else function.backward.__wrapped__)(ctx, *gradients)

    methods = {"forward": staticmethod(function.forward), "backward": staticmethod(backward)}
    return type(function.__name__, (torch.autograd.Function,), methods)


def applied(function: Any, written_out: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """A call of ``function``, written with ``setup_context``, without the binding of a signature at each call: 14 us.

    ``torch.func``'s transforms, ``torch.compile`` and ``torch.export`` get ``function`` itself; a trace by ``torch.jit``, which
    cannot save it, ``written_out``: the same in torch's own operations.
    """

    def forward(ctx: Any, *inputs: Any) -> Any:
        output = function.forward(*inputs)
        function.setup_context(ctx, inputs, output)
        return output

    quick = direct(type(function.__name__, (), {"forward": forward, "backward": staticmethod(function.backward)}))

    def call(*inputs: Any) -> Any:
        if eager():
            return quick.apply(*inputs)
        if written_out is not None and not torch.compiler.is_compiling() and is_tracing():
            return written_out(*inputs)
        return function.apply(*inputs)

    return call
