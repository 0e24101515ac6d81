"""Each op on a device beside the same op on the CPU in float64, every dtype, odd sizes: python -m bench.kernels [OP ...]

For a GPU's first minutes, and for compute-sanitizer: torch's own kernels are hardly used. A line for each op and dtype, and exit
status 1 if one is wrong. Without OP all, in this process; an illegal access breaks all that follows, so who wants to know about
all starts a process for each. ``--device emulated``: the CUDA kernels compiled for the CPU, of tests/emulated.
"""

import argparse
import contextlib
import itertools
import os
import sys
from pathlib import Path

import torch

import shrinknets_fast as sn
from shrinknets_fast.ops import compact

from .closeness import error

# The largest relative error (L2): long sums in another order, and for half types one rounding at the end, of which this is 4.
LIMIT = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
ops = torch.ops.shrinknets_fast


def thetas(size, dtype):
    """A third of them dead, by zero or below."""
    theta = torch.rand(size, dtype=dtype) + 0.5
    theta[::3] = 0
    theta[::5] = -1
    return theta


def fold(dtype, tiny):
    for rows, columns in [(5, 3), (33, 129)] if tiny else [(1, 1), (33, 129), (257, 1000), (64, 4096)]:
        weight, bias, theta = (
            torch.randn(rows, columns, dtype=dtype),
            torch.randn(rows, dtype=dtype),
            thetas(rows, dtype),
        )
        yield ops.fold, (weight, bias, theta)
        grad = torch.randn_like(weight)
        yield ops.fold_backward, (grad, bias, weight, bias, theta)


def filter(dtype, tiny):
    sizes = [(3, 7), (2, 5, 3, 3)] if tiny else [(1, 1), (1000, 33), (8, 257, 7, 7), (64, 64, 56, 56), (40000, 2)]
    for size, relu in itertools.product(sizes, (False, True)):
        x, theta = torch.randn(size, dtype=dtype), thetas(size[1], dtype)
        yield ops.filter, (x, theta, 1, relu)
        saved = ops.filter(x, theta, 1, True) if relu else x
        yield ops.filter_backward, (torch.randn_like(x), saved, theta, 1, relu)


def aliveness(dtype, tiny):
    groups = [thetas(size, dtype) for size in ([1, 40] if tiny else [1, 2, 31, 256, 257, 10000])]
    yield ops.aliveness, ([*groups, groups[-1].clone()], [*range(len(groups)), len(groups) - 1])


def bury_(dtype, tiny):
    groups = [thetas(size, dtype) for size in ([1, 40] if tiny else [1, 31, 257, 10000])]
    yield ops.bury_, (groups, [torch.randn_like(t) for t in groups], list(range(len(groups))))


def compact_(dtype, tiny):
    for side, dims in itertools.product([7, 70] if tiny else [1, 129, 3000], ((0,), (1,), (0, 1))):
        kept = torch.arange(0, side, 2)
        for order in (kept, compact.fill(kept, side)):
            tensors = [torch.randn(side, side, dtype=dtype), torch.randn(side, side, 3, dtype=dtype)]
            yield (
                ops.compact_,
                (tensors, [order], [n for n in range(2) for _ in dims], [*dims] * 2, [0] * 2 * len(dims)),
            )


def triton_linear(dtype, tiny):
    for rows, columns, features in [(5, 33, 7)] if tiny else [(1, 1, 1), (65, 33, 129), (512, 1000, 300)]:
        layer = sn.FilteredLinear(columns, features, activation="relu", dtype=dtype)
        yield through(layer, torch.randn(rows, columns, dtype=dtype), features)


def triton_conv(dtype, tiny):
    for channels, features, side in [(3, 5, 5)] if tiny else [(3, 17, 9), (64, 65, 28)]:
        layer = sn.FilteredConv2d(channels, features, 3, padding=1, activation="relu", dtype=dtype)
        yield through(layer, torch.randn(2, channels, side, side, dtype=dtype), features)


def through(layer, x, features):
    """A layer's output and gradients by its path "triton"; on the CPU in float64 by its own."""
    with torch.no_grad():
        layer.theta.copy_(thetas(features, layer.theta.dtype))

    def run(x, *state):
        layer.path = "fold" if x.dtype == torch.float64 else "triton"
        x = x.detach().requires_grad_()
        out = torch.func.functional_call(layer, dict(zip(layer._parameters, state, strict=True)), (x,))
        weights = torch.arange(out.numel(), device=out.device).view(out.shape).double().cos().to(out.dtype)
        grads = torch.autograd.grad(out, [x, *state], weights)
        return out.detach(), *grads

    return run, (x, *(p.detach().requires_grad_() for p in layer.parameters()))


CASES = {f.__name__: f for f in (fold, filter, aliveness, bury_, compact_, triton_linear, triton_conv)}


def moved(value, device, dtype=None):
    """Copies, since some ops write to their arguments. dtype: what floating-point tensors become."""
    if isinstance(value, (list, tuple)):
        return type(value)(moved(item, device, dtype) for item in value)
    if not isinstance(value, torch.Tensor):
        return value
    more = {"dtype": dtype} if dtype and value.is_floating_point() else {}
    return value.detach().clone().to(device, **more).requires_grad_(value.requires_grad)


def tensors_in(value):
    if isinstance(value, torch.Tensor):
        return [value.detach()]
    return [t for item in value or () for t in tensors_in(item)] if isinstance(value, (list, tuple, type(None))) else []


def what_is_left(call, args):
    """Outputs, and what became of the arguments; compact_ leaves what counts in front."""
    result = call(*args)
    if call is ops.compact_:
        tensors, (kept, *_), numbers, dims, _ = args
        return [
            front(t, [d for n, d in zip(numbers, dims, strict=True) if n == k], len(kept))
            for k, t in enumerate(tensors)
        ]
    return tensors_in(result) if result is not None else tensors_in(args)


def front(tensor, dims, count):
    shape = [count if d in dims else n for d, n in enumerate(tensor.shape)]
    return tensor.flatten()[: torch.Size(shape).numel()].view(shape)


def check(name, dtype, device, tiny):
    """The largest error of an op over its cases; raises where a case cannot run."""
    torch.manual_seed(0)
    worst = 0.0
    for call, args in CASES[name](dtype, tiny):
        expected = what_is_left(call, moved(args, "cpu", torch.float64))
        with device.routed():
            got = what_is_left(call, moved(args, device.name))
        worst = max([worst, *(error(g.cpu(), e.double()) for g, e in zip(got, expected, strict=True))])
    return worst


class Device:
    """Where the ops run: "cuda", "cpu", or "emulated", which are kernels of CUDA for tensors of the CPU."""

    def __init__(self, name):
        self.name, self.routed = name, contextlib.nullcontext
        if name != "cuda":
            sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
        if os.environ.get("TRITON_INTERPRET") == "1":
            import interpreter

            interpreter.mend()
        if name == "emulated":
            from emulated.library import Library

            self.name, self.routed = "cpu", Library().routed


def main():
    parser = argparse.ArgumentParser(prog="python -m bench.kernels", description=__doc__.split("\n")[0])
    parser.add_argument("ops", nargs="*", metavar="OP", help=f"of {', '.join(CASES)}; default: all")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="the smallest sizes only")
    arguments = parser.parse_args()
    unknown = set(arguments.ops) - set(CASES)
    if unknown:
        parser.error(f"OP is {', '.join(sorted(unknown))}, expected some of {', '.join(CASES)}")
    device, wrong = Device(arguments.device), 0
    for name in arguments.ops or CASES:
        for dtype in LIMIT:
            if "triton" in name and dtype == torch.float64:
                continue  # they do not take it
            found = check(name, dtype, device, arguments.tiny)
            good = found <= LIMIT[dtype]
            wrong += not good
            words = f"{name} in {str(dtype).removeprefix('torch.')}: largest error {found:.2g}"
            print(f"{'ok' if good else 'WRONG':<6} {words}, at most {LIMIT[dtype]:.2g}", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
