"""group_norm: group norm over the alive channels of each group, as an op."""

import pytest
import torch
from closeness import DTYPES, assert_close, wide

from shrinknets_fast import reference
from shrinknets_fast.ops.group_norm import group_norm

ops = torch.ops.shrinknets_fast
EPS = 1e-5
SHAPES = [(2, 6), (3, 6, 5), (2, 12, 3, 4), (0, 6, 4), (2, 6, 0), (1, 6, 2, 2, 3)]


def make(shape, dtype=torch.float64, alive=0.6):
    x, grad = (torch.randn(shape).to(dtype) for _ in range(2))
    weight, bias = (torch.randn(shape[1]).to(dtype) for _ in range(2))
    theta = torch.rand(shape[1]) + 0.1
    theta[torch.rand(shape[1]) >= alive] *= -1
    return x, weight, bias, theta.to(dtype), grad


def by_hand(x, weight, bias, theta, groups):
    """torch's own group norm of each group's alive channels, one group at a time."""
    y = torch.zeros_like(x)
    for group in torch.arange(x.shape[1]).view(groups, -1):
        keep = group[theta[group] > 0]
        if len(keep):
            pair = [None if t is None else (t * theta)[keep] for t in (weight, bias)]
            pair[0] = theta[keep] if pair[0] is None else pair[0]
            y[:, keep] = torch.nn.functional.group_norm(x[:, keep], 1, *pair, eps=EPS)
    return y


@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("shape", [(2, 6, 3), (3, 12, 3, 4)], ids=str)
def test_it_is_the_plain_norm_of_each_groups_living_channels(shape, groups):
    x, weight, bias, theta, grad = (t.requires_grad_() for t in make(shape))
    with torch.no_grad():
        theta[: shape[1] // groups if groups > 1 else 1] = -0.5  # a whole group
    for pair in ((weight, bias), (weight, None), (None, None)):
        tensors = [x, *(t for t in pair if t is not None), theta]
        ours, theirs = group_norm(x, *pair, theta, groups, EPS), by_hand(x, *pair, theta, groups)
        torch.testing.assert_close(ours, theirs)
        for a, b in zip(
            torch.autograd.grad(ours, tensors, grad),
            torch.autograd.grad(theirs, tensors, grad, allow_unused=True, materialize_grads=True),
            strict=True,
        ):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_the_reference(shape, dtype, nan_filled):
    x, weight, bias, theta, grad = make(shape, dtype)
    y, mean, rstd = ops.group_norm(x, weight, bias, theta, 2, EPS)
    assert y.dtype == dtype and y.stride() == torch.empty_like(x).stride()
    tensors = [t.requires_grad_() for t in wide(x, weight, bias, theta)]
    exact = reference.group_normed(*tensors, 2, EPS)[0]
    assert_close(y, exact.detach())
    grads = ops.group_norm_backward(grad, x, mean, rstd, weight, bias, theta, 2)
    for got, true in zip(grads, torch.autograd.grad(exact, tensors, grad.double()), strict=True):
        assert_close(got, true, dtype=torch.float32 if dtype == torch.float64 and not x.numel() else dtype)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_dead_channels_are_zero_whatever_they_hold(poison):
    x, weight, bias, theta, grad = make((2, 8, 5), torch.float32)
    clean = [t.clone() for t in (x, weight, bias)]
    dead = theta <= 0
    x[:, dead], grad[:, dead], weight[dead], bias[dead] = poison, poison, poison, poison
    y, mean, rstd = ops.group_norm(x, weight, bias, theta, 2, EPS)
    dx, *vectors = ops.group_norm_backward(grad, x, mean, rstd, weight, bias, theta, 2)
    assert torch.equal(y, ops.group_norm(*clean, theta, 2, EPS)[0])
    assert all(t.isfinite().all() for t in (y, dx, *vectors))
    assert (y[:, dead] == 0).all() and (dx[:, dead] == 0).all() and all((t[dead] == 0).all() for t in vectors)


@pytest.mark.parametrize(
    "x", [torch.randn(2, 6, 4, 4).to(memory_format=torch.channels_last), torch.randn(4, 6, 2).transpose(0, 2)]
)
def test_memory_formats_and_strides(x):
    theta = torch.linspace(-0.5, 1, 6)
    y = ops.group_norm(x, None, None, theta, 3, EPS)[0]
    assert y.stride() == torch.empty_like(x).stride()
    assert_close(y, ops.group_norm(x.contiguous(), None, None, theta, 3, EPS)[0].double())


@pytest.mark.parametrize("alive", [0, 0.6, 1])
def test_gradcheck(alive):
    x, weight, bias, theta, _ = (t.requires_grad_() for t in make((2, 6, 3), alive=alive))
    torch.autograd.gradcheck(lambda *t: group_norm(*t, 2, EPS), (x, weight, bias, theta))
    torch.autograd.gradcheck(lambda x, theta: group_norm(x, None, None, theta, 3, EPS), (x, theta))


def test_twice_is_refused():
    x, weight, bias, theta, _ = make((2, 4, 3))
    (grad,) = torch.autograd.grad(
        group_norm(x.requires_grad_(), weight, bias, theta, 2, EPS).sum(), x, create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
