import pytest
import torch
import torch.nn.functional as F
from closeness import assert_close, assert_no_worse, slid_views

from shrinknets_fast import reference
from shrinknets_fast.ops.linear import linear

ops = torch.ops.shrinknets_fast
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SHAPES = [  # (rows of x, in, out)
    (5, 9, 7),
    (33, 65, 17),
    (64, 64, 64),
    (70, 40, 130),
    (30, 200, 5),
    (20, 24, 80),
]
EMPTY = [(0, 5, 4), (3, 0, 5), (3, 5, 0), (0, 0, 3)]


def make(shape, dtype, device, alive="half", parameters=None):
    """x, weight, bias, theta, grad."""
    rows, columns, features = shape
    x, grad = torch.randn(rows, columns), torch.randn(rows, features)
    weight, bias, theta = torch.randn(features, columns), torch.randn(features), torch.randn(features)
    theta = {"none": -theta.abs(), "all": theta.abs() + 0.1}.get(alive, theta)
    if alive == "one":
        theta = -theta.abs()
        theta[features // 2] = 0.5
    x, grad = (t.to(device, dtype) for t in (x, grad))
    return x, *(t.to(device, parameters or dtype) for t in (weight, bias, theta)), grad


def unfused(x, weight, bias, theta, relu):
    y = F.linear(x, weight, bias) * torch.relu(theta)
    return torch.relu(y) if relu else y


def results(function, x, weight, bias, theta, grad, relu, dtype=None):
    """Output and the gradients of x, weight, bias and theta, computed in ``dtype``."""
    inputs = [None if t is None else t.detach().to(dtype or t.dtype).requires_grad_() for t in (x, weight, bias, theta)]
    out = function(*inputs, relu)
    out.backward(grad.to(out.dtype))
    return [out.detach(), *(t.grad for t in inputs if t is not None)]


def check(cases, relu, has_bias=True):
    """Each of the five results, pooled over ``cases``, is no worse than the unfused composition's; dead features are zeros."""
    got, theirs, exact = [], [], []
    for x, weight, bias, theta, grad in cases:
        bias = bias if has_bias else None
        got.append(results(linear, x, weight, bias, theta, grad, relu))
        theirs.append(results(unfused, x, weight, bias, theta, grad, relu))
        exact.append(results(unfused, x, weight, bias, theta, grad, relu, torch.float64))
        dead = theta <= 0
        out, _, *gradients = got[-1]
        assert (out[:, dead] == 0).all() and all((g[dead] == 0).all() for g in gradients)
        assert [t.dtype for t in got[-1]] == [t.dtype for t in theirs[-1]]
    for results_of_one in zip(zip(*got, strict=True), zip(*theirs, strict=True), zip(*exact, strict=True), strict=True):
        assert_no_worse(*results_of_one)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_no_worse_than_unfused(shape, dtype, kernel_device):
    draws = (
        1 if shape[0] * shape[2] > 500 else max(4, min(100 // shape[2], 12))
    )  # luck with few gradients of theta evens out
    for relu, has_bias in ((False, True), (True, True), (True, False)):
        check([make(shape, dtype, kernel_device) for _ in range(draws)], relu, has_bias)


@pytest.mark.parametrize("alive", ["none", "one", "all"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_all_dead_one_alive_none_dead(alive, dtype, kernel_device):
    check([make((19, 33, 21), dtype, kernel_device, alive) for _ in range(4)], relu=True)


@pytest.mark.parametrize("shape", EMPTY, ids=str)
@pytest.mark.parametrize("relu", [False, True])
def test_nothing_to_do(shape, relu, kernel_device, nan_filled):
    x, weight, bias, theta, grad = make(shape, torch.float32, kernel_device)
    for b in (bias, None):
        got = results(linear, x, weight, b, theta, grad, relu)
        for tensor, expected in zip(got, results(unfused, x, weight, b, theta, grad, relu), strict=True):
            assert_close(tensor, expected.double())


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("relu", [False, True])
def test_dead_features_are_zero_whatever_they_hold(poison, relu, kernel_device):
    x, weight, bias, theta, grad = make((9, 35, 6), torch.float32, kernel_device)
    theta.copy_(torch.tensor([0.0, -1, -0.0, 1, 2, -float("inf")]))
    dead = theta <= 0
    clean = results(linear, x, weight, bias, theta, grad, relu)
    for t in (weight, bias):
        t[dead] = poison
    grad[:, dead] = poison
    for tensor, expected in zip(results(linear, x, weight, bias, theta, grad, relu), clean, strict=True):
        assert torch.equal(tensor, expected)


def test_a_product_with_a_dead_feature_may_overflow(kernel_device):
    x, weight, bias, theta, grad = make((4, 8, 3), torch.float32, kernel_device, "one")
    x[2] = float("inf")
    weight[:, 0] = 0  # inf * 0
    out, *_, dtheta = results(linear, x, weight, bias, theta, grad, False)
    assert (out[:, theta <= 0] == 0).all() and (dtheta[theta <= 0] == 0).all()
    assert out[2, theta > 0].isnan().all() and out[0].isfinite().all()


def test_a_nan_theta_is_not_dead_and_a_nan_survives_relu(kernel_device):
    x, weight, bias, theta, grad = make((4, 8, 3), torch.float32, kernel_device, "all")
    theta[1] = float("nan")
    out, dx, dweight, *_ = results(linear, x, weight, bias, theta, grad, True)
    assert out[:, 1].isnan().all() and dx.isnan().all() and dweight[1].isnan().all()
    assert out[:, [0, 2]].isfinite().all() and dweight[[0, 2]].isfinite().all()


def strided(t, layout):
    """``t`` with another layout: the same values, in memory that is larger or ordered otherwise."""
    if t.dim() == 1:
        return torch.stack([t, t], 1)[:, 1]
    if layout == "transposed":
        return t.t().contiguous().t()
    if layout == "step":
        return t.repeat_interleave(2, 0).repeat_interleave(3, 1)[::2, ::3]
    if layout == "padded":  # rows stay dense and aligned
        return F.pad(t, (0, 8))[:, : t.shape[1]]
    return F.pad(t, (1, 0, 1, 0))[1:, 1:]


@pytest.mark.parametrize("layout", ["transposed", "step", "padded", "offset"])
@pytest.mark.parametrize("shape", [(21, 34, 13), (24, 32, 16)], ids=str)
def test_strides_change_nothing(layout, shape, kernel_device):
    tensors = make(shape, torch.float32, kernel_device)
    out = ops.linear(*tensors[:4], True)
    expected = [out, *ops.linear_backward(tensors[4], *tensors[:4], out)]
    x, weight, bias, theta, grad = (strided(t, layout) for t in tensors)
    got = [ops.linear(x, weight, bias, theta, True)]
    got += ops.linear_backward(grad, x, weight, bias, theta, strided(got[0], layout))
    for a, b in zip(got, expected, strict=True):
        assert a.is_contiguous()
        assert_close(a, b.double(), torch.float32)


def test_a_gradient_that_is_one_number_expanded(kernel_device):
    x, weight, bias, theta, _ = make((16, 32, 24), torch.float32, kernel_device)
    grad = torch.ones((), device=kernel_device).expand(16, 24)
    got, expected = (ops.linear_backward(g, x, weight, bias, theta) for g in (grad, grad.contiguous()))
    for a, b in zip(got, expected, strict=True):
        assert_close(a, b.double(), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_offset_views_leave_their_surroundings_alone(dtype, kernel_device):
    x, weight, bias, theta, grad = make((6, 16, 8), dtype, kernel_device)
    for view, untouched in slid_views((8, 16), dtype, kernel_device):
        for tensors in ((x, view, bias, theta, grad), (view[:6], weight, bias, theta, grad)):
            got = results(linear, *tensors, False)
            for a, b in zip(got, results(unfused, *tensors, False, torch.float64), strict=True):
                assert_close(a, b, dtype)
            untouched()


def test_strides_beyond_32_bits_are_counted_in_64(kernel_device):
    """The largest offset inside one tile is over 2**31: a tensor of two rows, far apart, in memory nobody touches."""
    far = 2**31 + 5
    weight = torch.empty(0, dtype=torch.float16, device=kernel_device).set_(
        torch.UntypedStorage(2 * (far + 8), device=kernel_device), 0, (2, 8), (far, 1)
    )
    x, small, bias, theta, grad = make((3, 8, 2), torch.float16, kernel_device, "all")
    weight.copy_(small)
    out = ops.linear(x, weight, bias, theta)
    assert torch.equal(out, ops.linear(x, small, bias, theta))
    for a, b in zip(
        ops.linear_backward(grad, x, weight, bias, theta), ops.linear_backward(grad, x, small, bias, theta), strict=True
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("shape", [(1, 5), (2, 3, 5), (2, 3, 4, 5), (5,)], ids=str)
def test_any_number_of_dimensions(shape, kernel_device):
    x = torch.randn(shape, device=kernel_device)
    _, weight, bias, theta, _ = make((1, 5, 7), torch.float32, kernel_device)
    grad = torch.randn(*shape[:-1], 7, device=kernel_device)
    got = results(linear, x, weight, bias, theta, grad, True)
    for a, b in zip(got, results(unfused, x, weight, bias, theta, grad, True, torch.float64), strict=True):
        assert_close(a, b, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_wide_parameters_keep_their_gradients_wide(dtype, kernel_device):
    """As under autocast: x is half, the parameters are float32, and so are their gradients, never rounded on the way."""
    x, weight, bias, theta, grad = make((64, 40, 24), dtype, kernel_device, parameters=torch.float32)
    out, dx, *gradients = results(linear, x, weight, bias, theta, grad, False)
    assert out.dtype == dx.dtype == dtype and all(g.dtype == torch.float32 for g in gradients)
    inputs = [t.double() for t in (grad, x, weight, bias, theta)]
    _, dweight, dbias, _ = reference.linear_backward(*inputs)
    assert_close(gradients[0], dweight, torch.float32)
    assert_close(gradients[1], dbias, torch.float32)
    assert_close(gradients[2], reference.linear_backward(*inputs)[3], torch.float32)


def test_the_twin_is_the_unfused_composition():
    x, weight, bias, theta, grad = (t.double() for t in make((5, 9, 7), torch.float32, "cpu"))
    for relu in (False, True):
        exact = results(unfused, x, weight, bias, theta, grad, relu)
        out = reference.linear(x, weight, bias, theta, relu)
        twin = [out, *reference.linear_backward(grad, x, weight, bias, theta, out if relu else None)]
        for a, b in zip(twin, exact, strict=True):
            assert_close(a, b)


def test_only_what_is_wanted_is_computed(kernel_device):
    x, weight, bias, theta, grad = make((6, 5, 4), torch.float32, kernel_device)
    full = ops.linear_backward(grad, x, weight, bias, theta)
    only_input = ops.linear_backward(grad, x, weight, bias, theta, None, True, False)
    assert torch.equal(only_input[0], full[0]) and all(t.numel() == 0 for t in only_input[1:])
    only_parameters = ops.linear_backward(grad, x, weight, bias, theta, None, False, True)
    assert only_parameters[0].numel() == 0
    assert all(torch.equal(a, b) for a, b in zip(only_parameters[1:], full[1:], strict=True))
    theta.requires_grad_()
    linear(x, weight, bias, theta).backward(grad)
    assert torch.equal(theta.grad, full[3])


def test_the_result_does_not_change_from_run_to_run(kernel_device):
    tensors = make((200, 300, 40), torch.float32, kernel_device)  # several blocks of columns add to dtheta
    first = ops.linear_backward(tensors[4], *tensors[:4])
    torch.use_deterministic_algorithms(True)
    again = ops.linear_backward(tensors[4], *tensors[:4])
    torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_twice_is_refused(kernel_device):
    x, weight, bias, theta, _ = make((6, 5, 4), torch.float32, kernel_device)
    x.requires_grad_()
    (grad,) = torch.autograd.grad(linear(x, weight, bias, theta).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


X, W, B, T = torch.ones(2, 3), torch.ones(10, 3), torch.ones(10), torch.ones(10)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((X, W, B, torch.ones(5)), r"linear: theta has shape \(5,\), expected \(10,\) to match weight \(10, 3\)"),
        ((X, W, torch.ones(10, 1), T), r"linear: bias has shape \(10, 1\), expected \(10,\)"),
        ((torch.ones(2, 4), W, B, T), r"linear: x has shape \(2, 4\), expected \(\*, in\)"),
        ((torch.ones(()), W, B, T), r"linear: x has shape \(\), expected \(\*, in\)"),
        ((X, torch.ones(3), B, T), r"linear: weight has shape \(3,\), expected \(out, in\)"),
        ((X.double(), W, B, T), "linear: x has dtype float64, expected float32, float16 or bfloat16"),
        ((X, W, B, T.long()), "linear: theta has dtype int64"),
        ((X, W, B.to("meta"), T), "linear: bias is on meta, expected cpu as x"),
    ],
)
def test_bad_arguments_are_named(arguments, words):
    with pytest.raises(RuntimeError, match=words):
        ops.linear(*arguments)
