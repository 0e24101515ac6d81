"""Masks of the Triton kernels at every edge of their blocks: nothing but the elements of the tensors is touched."""

import itertools

import pytest
import test_conv
import test_linear
import torch
from closeness import assert_close
from triton_memory import Fence, OutOfBounds, watched

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402  only where there is Triton

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="the interpreter is watched, which runs without a GPU"
)
EDGES = {  # (rows, columns, features) around the blocks that sizes like these get
    "one below": (63, 31, 31),
    "one above": (65, 33, 33),
    "whole": (64, 64, 32),
    "rows alone": (129, 32, 64),
    "columns alone": (32, 65, 64),
    "features alone": (64, 32, 129),
    "one of each": (1, 1, 1),
    "long sums": (3, 301, 5),
}


def compare(got, expected, fence):
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert not a.isnan().any()
        assert_close(a, b.double(), a.dtype)
    fence.check()


@pytest.mark.parametrize("shape", EDGES.values(), ids=EDGES)
def test_edges_of_a_linear_layer(shape):
    dtype = torch.bfloat16 if shape[2] == 31 else torch.float32  # masks are the same
    x, weight, bias, theta, grad = test_linear.make(shape, dtype, "cpu")
    ops = test_linear.ops
    for relu, b in itertools.product((False, True), (bias, None)):
        out = ops.linear(x, weight, b, theta, relu)
        expected = [out, *ops.linear_backward(grad, x, weight, b, theta, out if relu else None)]
        fence = Fence()
        put = [t if t is None else fence.put(t) for t in (x, weight, b, theta)]
        with watched() as counts:
            got = ops.linear(*put, relu)
            saved = fence.put(got) if relu else None
            got = [got, *ops.linear_backward(fence.put(grad), *put, saved)]
        assert counts["launches"] >= 3 and counts["accesses"] >= sum(t.numel() for t in (x, weight, grad))
        compare(got, expected, fence)


@pytest.mark.parametrize(("last", "relu"), [(False, False), (True, True)], ids=["contiguous", "channels last and relu"])
@pytest.mark.parametrize("name", test_conv.CASES)
def test_edges_of_a_convolution(name, last, relu):
    *tensors, grad = test_conv.make(test_conv.CASES[name], torch.float32, "cpu", last=last)
    options, ops = test_conv.CASES[name][2:], test_conv.ops
    out = ops.conv(*tensors, *options, relu)
    expected = [out, *ops.conv_backward(grad, *tensors, *options, out if relu else None)]
    fence = Fence()
    put = [fence.put(t) for t in tensors]
    with watched() as counts:
        got = ops.conv(*put, *options, relu)
        saved = fence.put(got) if relu else None
        got = [got, *ops.conv_backward(fence.put(grad), *put, *options, saved)]
    assert counts["launches"] >= 3
    compare(got, expected, fence)


@triton.jit
def copy_kernel(x, y, size, bound, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + at, tl.load(x + at, mask=at < bound), mask=at < size)


@pytest.mark.parametrize("excess", [0, 1])
def test_a_mask_that_lets_one_element_too_many_through_is_seen(excess):
    x, y = Fence().put(torch.randn(10)), torch.empty(10)
    with watched():
        if not excess:
            copy_kernel[(3,)](x, y, 10, 10, BLOCK=4)
            assert torch.equal(x, y)
            return
        with pytest.raises(Exception, match="a load touches 1 elements of none") as error:
            copy_kernel[(3,)](x, y, 10, 11, BLOCK=4)
    assert isinstance(error.value, OutOfBounds) or isinstance(error.value.__cause__, OutOfBounds)


def test_the_gaps_between_rows_are_nobodys():
    t = torch.zeros(3, 4)[:, :2]
    with watched(), pytest.raises(Exception, match="a store touches 1 elements"):
        copy_kernel[(1,)](torch.randn(4), t, 3, 4, BLOCK=4)
