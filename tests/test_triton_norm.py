"""The norm's Triton kernels: against the CPU's, in float64; nothing but the elements of the tensors is touched."""

import pytest
import torch
from closeness import assert_close, assert_no_worse, wide
from conftest import INTERPRETED
from test_layer_norm import EPS, make, minuend, unfused
from triton_memory import Fence, watched

from shrinknets_fast import reference
from shrinknets_fast.ops.layer_norm import on_gpu, on_gpu_backward

pytest.importorskip("triton")
SHAPES = [(3, 7), (2, 2, 128), (1, 129), (1, 4097), (65, 1), (0, 5), (3, 0)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def results(x, weight, bias, theta, grad, rms):
    y, mean, rstd = on_gpu(x, weight, bias, theta, EPS, rms)
    return [y, *on_gpu_backward(grad, x, mean, rstd, weight, bias, theta, rms)]


@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_the_reference(shape, dtype, rms, kernel_device, nan_filled):
    x, weight, bias, theta, grad = (t.to(kernel_device) for t in make(shape, dtype))
    for pair in ((weight, bias), (None, None)):
        got = results(x, *pair, theta, grad, rms)
        exact = [reference.layer_norm(*wide(x, *pair, theta), EPS, rms)]
        exact += reference.layer_norm_backward(*wide(grad, x, *pair, theta), EPS, rms)
        exact = [t for t in exact if t is not None]
        assert_close(got[0], exact[0])
        base = minuend(grad, x, pair[0], theta, rms)
        assert_close(got[1].double() + base, exact[1] + base, dtype)
        for a, b in zip(
            [t for t, like in zip(got[2:], (*pair, theta), strict=True) if like is not None], exact[2:], strict=True
        ):
            assert_close(a, b)


@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_errors_are_no_worse_than_the_unfused_compositions(dtype, rms, kernel_device):
    x, weight, bias, theta, grad = (t.to(kernel_device) for t in make((70, 40), dtype))
    got = results(x, weight, bias, theta, grad, rms)
    exact = [reference.layer_norm(*wide(x, weight, bias, theta), EPS, rms)]
    exact += reference.layer_norm_backward(*wide(grad, x, weight, bias, theta), EPS, rms)
    tensors = [t.clone().requires_grad_() for t in (x, weight, bias, theta)]
    y = unfused(*tensors, rms)
    theirs = [y.detach(), *torch.autograd.grad(y, tensors, grad)]
    for ours, other, true in zip(got, theirs, exact, strict=True):
        assert_no_worse([ours], [other], [true])


@pytest.mark.parametrize("alive", [0, 1])
def test_none_and_all_alive(alive, kernel_device):
    x, weight, bias, theta, grad = (t.to(kernel_device) for t in make((5, 40), torch.float32, alive=alive))
    for t in (x, weight, bias, grad):
        t[..., theta <= 0] = float("nan")
    got = results(x, weight, bias, theta, grad, False)
    assert all(t.isfinite().all() and ((t != 0).any() if alive else (t == 0).all()) for t in got)


@pytest.mark.skipif(not INTERPRETED, reason="the interpreter is watched, which runs without a GPU")
@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize("shape", [(3, 127), (65, 3), (1, 1030)], ids=str)
def test_nothing_else_is_touched(shape, rms):
    x, weight, bias, theta, grad = make(shape, torch.float32)
    expected, fence = results(x, weight, bias, theta, grad, rms), Fence()
    put = [fence.put(t) for t in (x, weight, bias, theta, grad)]
    with watched() as counts:
        got = results(*put, rms)
    assert counts["launches"] == 3
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    fence.check()
