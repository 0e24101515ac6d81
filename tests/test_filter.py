import os
import re
from pathlib import Path

import pytest
import torch
from closeness import DTYPES, assert_close, mixed_dtypes, slid_views, wide

from shrinknets_fast import reference
from shrinknets_fast.ops.filter import filter

ops = torch.ops.shrinknets_fast
CASES = [  # (shape, dim); theta has shape[dim] entries
    ((4, 7), 1),
    ((5, 1), 1),
    ((1, 9), 1),
    ((3, 7, 5), 1),
    ((3, 7, 5), -1),
    ((3, 7, 5), 0),
    ((2, 33, 6, 6), 1),
    ((2, 3, 40, 40), 1),
    ((2, 5, 3, 4, 2), 1),
    ((700, 3), 1),
    ((0, 7), 1),
    ((3, 0), 1),
    ((3, 7, 0), 1),
    ((40_000,), 0),
    ((1, 3, 200, 201), 1),
]


def make(shape, dim, dtype=torch.float64, device="cpu", theta_dtype=None):
    x, grad = (torch.randn(shape, device=device).to(dtype) for _ in range(2))
    return x, torch.randn(shape[dim], device=device).to(theta_dtype or dtype), grad


def check(x, theta, grad, dim):
    for relu in (False, True):
        y = ops.filter(x, theta, dim, relu)
        assert y.dtype == x.dtype and y.stride() == torch.empty_like(x).stride()
        assert_close(y, reference.filter(*wide(x, theta), dim, relu))
        check_backward(y if relu else x, theta, grad, dim, relu)


def check_backward(x, theta, grad, dim, relu):
    dx, dtheta = ops.filter_backward(grad, x, theta, dim, relu)
    assert dx.dtype == x.dtype and dtheta.dtype == theta.dtype and dx.stride() == torch.empty_like(x).stride()
    ref_dx, ref_dtheta = reference.filter_backward(*wide(grad, x, theta), dim, relu)
    assert_close(dx, ref_dx, dtype=max((x.dtype, grad.dtype), key=lambda d: torch.finfo(d).eps))
    assert_close(dtheta, ref_dtheta, dtype=max((x.dtype, theta.dtype), key=lambda d: torch.finfo(d).eps))
    assert (dtheta[theta <= 0] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "dim"), CASES, ids=str)
def test_against_the_reference(shape, dim, dtype, device, nan_filled):
    check(*make(shape, dim, dtype, device), dim)


@pytest.mark.parametrize(("dtype", "other"), mixed_dtypes())
def test_mixed_dtypes(dtype, other, device):
    x, theta, grad = make((3, 17, 5, 4), 1, dtype, device, theta_dtype=other)
    check(x, theta, grad.to(other), 1)


@pytest.mark.parametrize("shape", [(), (5,), (2, 5), (2, 3, 4), (2, 70_001), (2, 3, 0)], ids=str)
@pytest.mark.parametrize("value", [0.5, 0.0, -1.0])
def test_a_gate_takes_any_tensor(shape, value, device):
    x, grad = (torch.randn(shape, dtype=torch.float64, device=device) for _ in range(2))
    theta = torch.tensor([value], dtype=torch.float64, device=device)
    check(x, theta, grad, 1)
    if value <= 0:
        x = torch.full_like(x, float("nan"))
        assert (ops.filter(x, theta, 1) == 0).all()
        assert all((g == 0).all() for g in ops.filter_backward(x, x, theta, 1))


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize(("shape", "dim"), [((4, 6), 1), ((2, 6, 5, 7), 1), ((3, 6, 2), 1)], ids=str)
def test_dead_features_are_zero_whatever_they_hold(poison, shape, dim, relu, device):
    x, theta, grad = make(shape, dim, torch.float32, device)
    theta.copy_(torch.tensor([0.0, -1, -0.0, 1, 2, -float("inf")]))
    dead = theta <= 0
    for t in (x, grad):
        t.transpose(0, dim)[dead] = poison
    y = ops.filter(x, theta, dim, relu)
    dx, dtheta = ops.filter_backward(grad, y if relu else x, theta, dim, relu)
    for tensor in (y, dx):
        assert (tensor.transpose(0, dim)[dead] == 0).all() and tensor.isfinite().all()
    assert (dtheta[dead] == 0).all() and dtheta.isfinite().all()


@pytest.mark.parametrize("shape", [(3, 6), (2, 6, 40)], ids=str)
def test_relu_keeps_nan_and_its_gradient_passes_nothing_where_the_output_is_zero(shape, device):
    x, theta, _ = make(shape, 1, torch.float32, device)
    theta = theta.abs()
    x[0, 1], x[:, 2] = float("nan"), -1.0
    y = ops.filter(x, theta, relu=True)
    assert torch.equal(y.isnan(), x.isnan()) and (y[:, 2] == 0).all()
    poisoned = torch.full_like(x, float("nan"))
    dx, dtheta = ops.filter_backward(poisoned, y, theta, relu=True)
    assert torch.equal(dx.isnan(), ~(y <= 0)) and dtheta[2] == 0


def test_a_nan_theta_is_not_dead(device):
    x, theta, grad = make((3, 4), 1, device=device)
    theta[2] = float("nan")
    assert ops.filter(x, theta)[:, 2].isnan().all() and ops.filter_backward(grad, x, theta)[0][:, 2].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(5, 3), (2, 3, 40)], ids=str)
def test_a_float64_theta_is_alive_down_to_its_own_smallest(shape, dtype, device):
    x, _, grad = make(shape, 1, dtype, device)
    theta = torch.tensor([1e-60, -1e-60, 1.0], dtype=torch.float64, device=device)
    poisoned = x.clone()
    poisoned[1] = float("nan")
    for tensor in (ops.filter(poisoned, theta), ops.filter_backward(poisoned, x, theta)[0]):
        assert tensor[1, 0].isnan().all() and (tensor[:, 1] == 0).all()
    dtheta = ops.filter_backward(grad, x, theta)[1]
    assert_close(dtheta, reference.filter_backward(*wide(grad, x, theta))[1])
    assert dtheta[0] != 0 and dtheta[1] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(50, 13), (3, 13, 40)], ids=str)
@pytest.mark.parametrize("which", range(3))
def test_one_float64_operand_computes_all_in_float64(which, shape, dtype, device):
    operands = [t.to(dtype) for t in make(shape, 1, torch.float64, device)]
    operands[which] = operands[which].double()
    x, theta, grad = operands
    y, (dx, dtheta) = ops.filter(x, theta), ops.filter_backward(grad, x, theta)
    ref_dx, ref_dtheta = reference.filter_backward(*wide(grad, x, theta))
    assert which == 2 or torch.equal(y, reference.filter(*wide(x, theta)).to(y.dtype))
    assert torch.equal(dx, ref_dx.to(dx.dtype))
    assert_close(dtheta, ref_dtheta.to(theta.dtype))


def layouts():
    base = torch.randn(4, 6, 10, 8, dtype=torch.float64)
    return {
        "channels_last": base.contiguous(memory_format=torch.channels_last),
        "transposed": base.transpose(1, 2),
        "permuted": base.permute(3, 1, 0, 2),
        "step": base[:, ::2, ::3],
        "offset": base[1:, 1:, 3:, 2:],
        "expanded": base[:, :, :1].expand(4, 6, 5, 8),
        "feature_expanded": base[:, :1].expand(4, 6, 10, 8),
        "matrix_t": base[0, 0].t(),
    }


@pytest.mark.parametrize("name", layouts())
@pytest.mark.parametrize("dim", [0, 1])
def test_strided_inputs_and_gradients(name, dim, device):
    x = layouts()[name].to(device)
    strided = x if device == "cpu" else torch.empty_strided(x.shape, x.stride(), device=device).copy_(x)
    _, theta, grad = make(tuple(x.shape), dim, device=device)
    check(strided, theta, grad, dim)
    check(grad, theta, strided, dim)
    check(strided, torch.stack([theta, theta], 1)[:, 0], strided, dim)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_offset_views_leave_their_surroundings_alone(dtype, device):
    _, theta, grad = make((3, 4, 8), 1, dtype, device)
    for x, untouched in slid_views((3, 4, 8), dtype, device):
        check(x, theta, grad, 1)
        check(grad, theta, x, 1)
        untouched()


@pytest.mark.parametrize(
    ("shape", "dim", "entries"), [((3, 4), 1, 4), ((2, 3, 2, 2), 1, 3), ((2, 3), 0, 2), ((3, 2), 1, 1)]
)
def test_gradcheck(shape, dim, entries):
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    theta = torch.tensor([0.7, -0.5, 1.2, 0.3][:entries], dtype=torch.float64, requires_grad=True)
    for relu in (False, True):
        torch.autograd.gradcheck(lambda x, theta: filter(x, theta, dim, relu), (x, theta))  # noqa: B023


def test_twice_is_refused():
    x, theta, _ = make((3, 4), 1)
    (grad,) = torch.autograd.grad(filter(x.requires_grad_(), theta).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("shape", [(1001, 33), (8, 16, 50, 50), (1, 1, 300_000)], ids=str)
def test_the_result_does_not_change_from_run_to_run_nor_with_threads(shape, device):
    x, theta, grad = (t.abs() + 0.1 for t in make(shape, 1, torch.float32, device))  # a sum without cancellation
    first = ops.filter_backward(grad, x, theta)[1]
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert torch.equal(ops.filter_backward(grad, x, theta)[1], first)
    finally:
        torch.set_num_threads(threads)
    assert_close(first, reference.filter_backward(*wide(grad, x, theta))[1])


def grown_by(call):
    """Bytes by which ``call()`` raises this process's peak memory."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = peak()
    result = call()
    return peak() - before, result


def peak():
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's /proc")
@pytest.mark.parametrize("shape", [(1, 300_000, 16), (64, 100_000), (64, 10_000, 9)], ids=str)
def test_the_backward_needs_little_memory_of_its_own(shape):
    x, theta, grad = (t.abs() + 0.1 for t in make(shape, 1, torch.float32))
    grown, (dx, dtheta) = grown_by(lambda: ops.filter_backward(grad, x, theta))
    sums = 8 * theta.numel() + 8 * x.numel() // 8  # one for each feature, and at most one for each 8 elements
    assert grown <= dx.nbytes + dtheta.nbytes + theta.nbytes + sums + 2**21
    assert_close(dtheta, reference.filter_backward(*wide(grad, x, theta))[1])
