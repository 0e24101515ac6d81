"""layer_norm: layer and RMS norm over the alive features, as an op."""

import pytest
import torch
from closeness import DTYPES, assert_close, assert_no_worse, mixed_dtypes, slid_views, wide

from shrinknets_fast import reference
from shrinknets_fast.ops.layer_norm import layer_norm, written_out

ops = torch.ops.shrinknets_fast
EPS = 1e-5
SHAPES = [(7,), (4, 1), (1, 9), (5, 16), (3, 33), (70, 19), (2, 3, 5), (3, 1500), (600, 40), (0, 7), (3, 0), (2, 0, 4)]


def make(shape, dtype=torch.float64, other=None, alive=0.6):
    """x, weight, bias, theta, grad; the share ``alive`` of the features, none where it is 0."""
    x, grad = (torch.randn(shape).to(dtype) for _ in range(2))
    weight, bias = (torch.randn(shape[-1]).to(other or dtype) for _ in range(2))
    theta = torch.rand(shape[-1]) + 0.1
    theta[torch.rand(shape[-1]) >= alive] *= -1
    return x, weight, bias, theta.to(other or dtype), grad


def coarsest(*tensors):
    return max((t.dtype for t in tensors if t is not None), key=lambda d: torch.finfo(d).eps)


def minuend(grad, x, weight, theta, rms):
    """rstd h: the gradient of x is a difference from it, of numbers that are almost equal where few features are alive."""
    theta, rstd = theta.double(), reference.normed(*wide(x, weight, None, theta), EPS, rms)[2]
    scale = torch.where(theta > 0, theta * (1 if weight is None else weight.double()), 0.0)
    return torch.where(theta > 0, grad.double(), 0.0) * scale * rstd


def check(x, weight, bias, theta, grad, rms=False):
    """Forward and backward against the float64 reference; dead features are exact zeros."""
    y, mean, rstd = ops.layer_norm(x, weight, bias, theta, EPS, rms)
    assert y.dtype == x.dtype and y.is_contiguous() and mean.numel() == (0 if rms else rstd.numel())
    assert_close(y, reference.layer_norm(*wide(x, weight, bias, theta), EPS, rms))
    grads = ops.layer_norm_backward(grad, x, mean, rstd, weight, bias, theta, rms)
    refs = reference.layer_norm_backward(*wide(grad, x, weight, bias, theta), EPS, rms)
    for got, expected, like in zip(grads, refs, (x, weight, bias, theta), strict=True):
        if like is None:
            assert not got.numel() and expected is None
            continue
        assert got.dtype == like.dtype and got.shape == like.shape
        base = minuend(grad, x, weight, theta, rms) if like is x else 0.0
        assert_close(got.double() + base, expected + base, dtype=coarsest(got, grad, x))
    dead = theta <= 0
    assert all(
        (t[..., dead] == 0).all()
        for t, like in zip((y, *grads), (x, x, weight, bias, theta), strict=True)
        if like is not None
    )


@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_the_reference(shape, dtype, rms, nan_filled):
    x, weight, bias, theta, grad = make(shape, dtype)
    check(x, weight, bias, theta, grad, rms)
    check(x, weight, None, theta, grad, rms)
    check(x, None, None, theta.abs(), grad, rms)


@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize("alive", ["none", "one", "all but one", "all"])
def test_none_one_and_all_alive(alive, rms):
    x, weight, bias, theta, grad = make((5, 21), alive=1)
    if alive != "all":
        theta[: -1 if alive == "all but one" else None] *= 1 if alive == "all but one" else -1
        theta[4] = 0.5 if alive == "one" else -0.5
    check(x, weight, bias, theta, grad, rms)


@pytest.mark.parametrize(("dtype", "other"), mixed_dtypes())
def test_mixed_dtypes(dtype, other):
    x, weight, bias, theta, grad = make((13, 37), dtype, other)
    check(x, weight, bias, theta, grad.to(other))


@pytest.mark.parametrize("rms", [False, True])
def test_it_is_the_plain_norm_of_the_features_that_are_left(rms):
    x, weight, bias, theta, _ = make((6, 29))
    keep, bias = theta > 0, None if rms else bias
    plain = torch.nn.functional.rms_norm if rms else torch.nn.functional.layer_norm
    pair = [(t * theta)[keep] for t in (weight, bias) if t is not None]
    assert_close(
        layer_norm(x, weight, bias, theta, EPS, rms)[:, keep], plain(x[:, keep], (int(keep.sum()),), *pair, eps=EPS)
    )


@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_dead_features_are_zero_whatever_they_hold(poison, dtype, rms):
    x, weight, bias, theta, grad = make((7, 35), dtype)
    clean = [t.clone() for t in (x, weight, bias)]
    for t in (x, weight, bias, grad):
        t[..., theta <= 0] = poison
    y, mean, rstd = ops.layer_norm(x, weight, bias, theta, EPS, rms)
    grads = ops.layer_norm_backward(grad, x, mean, rstd, weight, bias, theta, rms)
    assert all(t.isfinite().all() and (t[..., theta <= 0] == 0).all() for t in (y, *grads))
    assert torch.equal(y, ops.layer_norm(*clean, theta, EPS, rms)[0])


def test_a_nan_theta_is_not_dead():
    x, weight, bias, theta, _ = make((3, 5), alive=1)
    theta[1] = float("nan")
    y = layer_norm(x, weight, bias, theta, EPS)
    assert y[:, 1].isnan().all() and y[:, 2:].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_float64_theta_is_alive_down_to_its_own_smallest(dtype):
    x, weight, bias, theta, grad = make((3, 4), dtype, alive=1)
    check(x, weight, bias, torch.tensor([1e-60, -1e-60, 1.0, 2.0], dtype=torch.float64), grad)


def layouts():
    base = torch.randn(4, 6, 10, 8, dtype=torch.float64)
    return {
        "transposed": base.transpose(2, 3),
        "permuted": base.permute(3, 1, 0, 2),
        "step": base[:, ::2, ::3, ::2],
        "offset": base[1:, 1:, 3:, 2:],
        "expanded": base[:, :, :1].expand(4, 6, 5, 8),
        "rows with gaps": base[0, 0, :, :5],
    }


@pytest.mark.parametrize("name", layouts())
def test_strided_inputs_and_gradients(name):
    x = layouts()[name]
    _, weight, bias, theta, grad = make(tuple(x.shape))
    check(x, weight, bias, theta, grad)
    check(grad, weight, bias, theta, x)
    check(x, *(torch.stack([t, t], 1)[:, 0] for t in (weight, bias, theta)), grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_offset_views_leave_their_surroundings_alone(dtype):
    _, weight, bias, theta, grad = make((3, 24), dtype)
    for x, untouched in slid_views((3, 24), dtype):
        check(x, weight, bias, theta, grad)
        check(grad, weight, bias, theta, x)
        untouched()


@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize("alive", [0, 0.6, 1])
def test_gradcheck(alive, rms):
    x, weight, bias, theta, _ = (t.requires_grad_() for t in make((2, 3, 6), alive=alive))
    torch.autograd.gradcheck(lambda *t: layer_norm(*t, EPS, rms), (x, weight, bias, theta))
    torch.autograd.gradcheck(lambda x, theta: layer_norm(x, None, None, theta, EPS, rms), (x, theta))


def test_only_the_gradients_that_are_wanted():
    x, weight, bias, theta, grad = make((5, 8))
    _, mean, rstd = ops.layer_norm(x, weight, bias, theta, EPS)
    whole = ops.layer_norm_backward(grad, x, mean, rstd, weight, bias, theta)
    dx, *none = ops.layer_norm_backward(grad, x, mean, rstd, weight, bias, theta, False, True, False)
    none_x, *vectors = ops.layer_norm_backward(grad, x, mean, rstd, weight, bias, theta, False, False, True)
    assert all(torch.equal(a, b) for a, b in zip((dx, *vectors), whole, strict=True))
    assert not any(t.numel() for t in (*none, none_x))
    layer_norm(x, weight, bias.requires_grad_(), theta, EPS).sum().backward()
    assert x.grad is None and bias.grad is not None and weight.grad is None


def test_twice_is_refused():
    x, weight, bias, theta, _ = make((3, 4))
    (grad,) = torch.autograd.grad(
        layer_norm(x.requires_grad_(), weight, bias, theta, EPS).square().sum(), x, create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("shape", [(1001, 33), (40, 3000), (5000, 8)], ids=str)
def test_the_result_does_not_change_with_threads(shape):
    x, weight, bias, theta, grad = make(shape, torch.float32)

    def run():
        y, mean, rstd = ops.layer_norm(x, weight, bias, theta, EPS)
        return [y, *ops.layer_norm_backward(grad, x, mean, rstd, weight, bias, theta)]

    first, threads = run(), torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert all(torch.equal(a, b) for a, b in zip(run(), first, strict=True))
    finally:
        torch.set_num_threads(threads)


def unfused(x, weight, bias, theta, rms):
    """The composition in torch's own ops, in x's dtype."""
    alive, n = theta > 0, (theta > 0).sum()
    kept = torch.where(alive, x, 0)
    centred = kept if rms else torch.where(alive, kept - kept.sum(-1, keepdim=True) / n, 0)
    y = centred * (centred.square().sum(-1, keepdim=True) / n + EPS).rsqrt() * weight
    return torch.where(alive, y if bias is None else y + bias, 0) * theta.clamp(min=0)


@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(300, 64), (16, 1024), (4, 9, 33)], ids=str)
def test_errors_are_no_worse_than_the_unfused_compositions(shape, dtype, rms):
    x, weight, bias, theta, grad = make(shape, dtype)
    given = [x, weight, *(() if rms else (bias,)), theta]

    def run(function, tensors, grad):
        tensors = [t.clone().requires_grad_() for t in tensors]
        x, weight, *bias, theta = tensors
        y = function(x, weight, bias[0] if bias else None, theta)
        return [y.detach(), *torch.autograd.grad(y, tensors, grad)]

    exact = run(lambda *t: reference.layer_norm(*t, EPS, rms), wide(*given), grad.double())
    got = run(lambda *t: layer_norm(*t, EPS, rms), given, grad)
    for ours, theirs, true in zip(got, run(lambda *t: unfused(*t, rms), given, grad), exact, strict=True):
        assert_no_worse([ours], [theirs], [true])


@pytest.mark.parametrize("rms", [False, True])
def test_written_out_it_is_the_same(rms):
    x, weight, bias, theta, _ = make((2, 3, 9))
    for a, b in zip(
        ops.layer_norm(x, weight, bias, theta, EPS, rms), written_out(x, weight, bias, theta, EPS, rms), strict=True
    ):
        assert_close(a, b)
