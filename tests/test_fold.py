import pytest
import torch
from closeness import DTYPES, assert_close, mixed_dtypes, slid_views, wide

from shrinknets_fast import reference
from shrinknets_fast.ops.fold import fold

ops = torch.ops.shrinknets_fast
SHAPES = [
    (1,),
    (7,),
    (5, 3),
    (1, 1),
    (33, 17),
    (3, 5000),
    (70, 9),
    (4, 3, 5),
    (6, 2, 3, 3),
    (2, 3, 2, 2, 5),
    (0, 4),
    (4, 0),
    (300, 1),
]


def make(shape, dtype=torch.float64, device="cpu", bias_dtype=None, theta_dtype=None):
    """weight, bias, theta, grad_weight, grad_bias with about half the rows dead."""
    weight, grad = (torch.randn(shape, device=device).to(dtype) for _ in range(2))
    bias, grad_bias = (torch.randn(shape[0], device=device).to(bias_dtype or dtype) for _ in range(2))
    return weight, bias, torch.randn(shape[0], device=device).to(theta_dtype or dtype), grad, grad_bias


def check(weight, bias, theta, grad, grad_bias, dtype=None):
    """Forward and backward against the float64 reference; dead rows are exact zeros."""
    out, out_bias = ops.fold(weight, bias, theta, dtype)
    ref, ref_bias = reference.fold(*wide(weight, bias, theta))
    assert out.dtype == (dtype or weight.dtype) and out.stride() == torch.empty_like(weight).stride()
    assert_close(out, ref)
    assert_close(out_bias, ref_bias)
    grads = ops.fold_backward(grad, grad_bias, weight, bias, theta)
    refs = reference.fold_backward(*wide(grad, grad_bias, weight, bias, theta))
    for got, expected, like in zip(grads, refs, (weight, bias, theta), strict=True):
        assert like is None or got.dtype == like.dtype
        narrow = max((t.dtype for t in (got, grad, weight)), key=lambda d: torch.finfo(d).eps)
        assert_close(got, expected, dtype=narrow)
    dead = theta <= 0
    for tensor in (out, grads[0], grads[2]):
        assert (tensor[dead] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_the_reference(shape, dtype, device, nan_filled):
    weight, bias, theta, grad, grad_bias = make(shape, dtype, device)
    check(weight, bias, theta, grad, grad_bias)
    check(weight, None, theta, grad, None)
    check(weight, bias, theta, grad, None)


@pytest.mark.parametrize(("dtype", "other"), mixed_dtypes())
def test_mixed_dtypes_and_the_cast(dtype, other, device):
    weight, bias, theta, grad, grad_bias = make((13, 37), dtype, device, bias_dtype=other, theta_dtype=other)
    check(weight, bias.to(dtype), theta, grad.to(other), grad_bias.to(other), dtype=other)
    assert ops.fold(weight, bias, theta, other)[1].dtype == other


@pytest.mark.parametrize("alive", ["none", "one", "all"])
def test_all_dead_one_alive_none_dead(alive, device):
    weight, bias, theta, grad, grad_bias = make((9, 21), device=device)
    theta = -theta.abs() if alive != "all" else theta.abs() + 0.1
    if alive == "one":
        theta[4] = 0.5
    check(weight, bias, theta, grad, grad_bias)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_dead_rows_are_zero_whatever_they_hold(poison, device):
    weight, bias, theta, grad, grad_bias = make((6, 35), torch.float32, device)
    theta.copy_(torch.tensor([0.0, -1, -0.0, 1, 2, -float("inf")]))
    dead = theta <= 0
    for t in (weight, bias, grad, grad_bias):
        t[dead] = poison
    for tensor in (*ops.fold(weight, bias, theta), *ops.fold_backward(grad, grad_bias, weight, bias, theta)):
        assert (tensor[dead] == 0).all() and tensor.isfinite().all()


def test_a_nan_theta_is_not_dead(device):
    weight, bias, theta, grad, grad_bias = make((4, 5), device=device)
    theta[1] = float("nan")
    for tensor in (*ops.fold(weight, bias, theta), ops.fold_backward(grad, grad_bias, weight, bias, theta)[0]):
        assert tensor[1].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_float64_theta_is_alive_down_to_its_own_smallest(dtype, device):
    weight, bias, _, grad, grad_bias = make((3, 40), dtype, device)
    weight[:, 1] = grad[:, 1] = bias[:] = float("nan")
    theta = torch.tensor([1e-60, -1e-60, 1.0], dtype=torch.float64, device=device)
    (out, out_bias), (dweight, _, _) = ops.fold(weight, bias, theta), ops.fold_backward(grad, None, weight, bias, theta)
    assert out[0, 1].isnan() and out_bias[0].isnan() and dweight[0, 1].isnan()
    assert (out[1] == 0).all() and out_bias[1] == 0 and (dweight[1] == 0).all()
    for t in (weight, grad, bias, grad_bias):
        t.nan_to_num_()
    dtheta = ops.fold_backward(grad, grad_bias, weight, bias, theta)[2]
    assert_close(dtheta, reference.fold_backward(*wide(grad, grad_bias, weight, bias, theta))[2])
    assert dtheta[0] != 0 and dtheta[1] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("which", range(5))
def test_one_float64_operand_computes_all_in_float64(which, dtype, device):
    operands = [t.to(dtype) for t in make((13, 37), torch.float64, device)]
    operands[which] = operands[which].double()
    weight, bias, theta, grad, grad_bias = operands
    if which < 3:
        for got, ref in zip(ops.fold(weight, bias, theta), reference.fold(*wide(weight, bias, theta)), strict=True):
            assert torch.equal(got, ref.to(got.dtype))
    grads = ops.fold_backward(grad, grad_bias, weight, bias, theta)
    refs = reference.fold_backward(*wide(grad, grad_bias, weight, bias, theta))
    for got, ref in zip(grads[:2], refs[:2], strict=True):
        assert torch.equal(got, ref.to(got.dtype))
    assert_close(grads[2], refs[2].to(theta.dtype), dtype=torch.float64 if which == 2 else None)


def layouts():
    base = torch.randn(12, 10, 6, 4, dtype=torch.float64)
    return {
        "transposed": base[0, :, :, 0].t(),
        "step": base[::2, ::3, 0, 0],
        "offset": base[1:, 2:, 1, 1],
        "expanded": base[:, :1, 0, 0].expand(12, 9),
        "channels_last": base.contiguous(memory_format=torch.channels_last),
        "permuted": base.permute(2, 0, 3, 1),
        "column": base[:, 3, 2, 1],
        "inner_gap": base[:, :, ::2, :3],
        "row_expanded": base[:1, :, 0, 0].expand(7, 10),
    }


@pytest.mark.parametrize("name", layouts())
def test_strided_weights_and_gradients(name, device):
    weight = layouts()[name].to(device)
    strided = (
        weight if device == "cpu" else torch.empty_strided(weight.shape, weight.stride(), device=device).copy_(weight)
    )
    _, bias, theta, grad, grad_bias = make(tuple(weight.shape), device=device)
    check(strided, bias, theta, grad, grad_bias)
    check(grad, bias, theta, strided, grad_bias)
    twice = torch.stack([theta, theta], 1)
    check(strided, torch.stack([bias, bias], 1)[:, 1], twice[:, 0], strided, bias.flip(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_offset_views_leave_their_surroundings_alone(dtype, device):
    _, bias, theta, grad, grad_bias = make((5, 12), dtype, device)
    for weight, untouched in slid_views((5, 12), dtype, device):
        check(weight, bias, theta, grad, grad_bias)
        check(grad, bias, theta, weight, grad_bias)
        untouched()


def test_gradcheck():
    weight, bias, theta, *_ = make((6, 3, 2))
    theta = theta + theta.sign() * 0.1  # away from the kink
    for t in (weight, bias, theta):
        t.requires_grad_()
    torch.autograd.gradcheck(fold, (weight, bias, theta))
    torch.autograd.gradcheck(lambda w, t: fold(w, None, t)[0], (weight, theta))


def test_only_what_is_needed_gets_a_gradient_and_twice_is_refused():
    weight, bias, theta, *_ = make((6, 3))
    theta.requires_grad_()
    out, out_bias = fold(weight, bias, theta)
    out_bias.sum().backward()  # the folded weight is not used
    torch.testing.assert_close(theta.grad, torch.where(theta > 0, bias, 0.0))
    weight.requires_grad_()
    (grad,) = torch.autograd.grad(fold(weight, None, theta)[0].square().sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_long_rows_are_summed_as_well_as_torch_does():
    weight, grad = torch.rand(2, 1_000_003), torch.rand(2, 1_000_003)
    theta = torch.ones(2)
    got = ops.fold_backward(grad, None, weight, None, theta)[2].double()
    exact = (weight.double() * grad.double()).sum(1)
    assert ((got - exact).abs() / exact).max() < 2e-7


def test_the_result_does_not_change_from_run_to_run(device):
    weight, bias, theta, grad, grad_bias = make((257, 1025), torch.float32, device)
    first = ops.fold_backward(grad, grad_bias, weight, bias, theta)
    for _ in range(3):
        again = ops.fold_backward(grad, grad_bias, weight, bias, theta)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
