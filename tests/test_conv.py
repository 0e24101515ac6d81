import pytest
import torch
import torch.nn.functional as F
from closeness import assert_close, assert_no_worse, slid_views, wide

from shrinknets_fast import reference
from shrinknets_fast.ops.conv import conv

pytest.importorskip("triton")
from shrinknets_fast.triton_kernels import conv_blocks, conv_launch  # noqa: E402  only where there is Triton

ops = torch.ops.shrinknets_fast
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# (x, weight, stride, padding, dilation, groups)
CASES = {
    "1d": ((3, 5, 13), (57, 5, 3), [1], [0], [1], 1),
    "1d strided and dilated": ((2, 4, 17), (58, 2, 2), [2], [3], [3], 2),
    "2d": ((2, 3, 8, 9), (61, 3, 3, 2), [1, 1], [1, 0], [1, 1], 1),
    "stride": ((2, 3, 9, 8), (59, 3, 3, 3), [2, 3], [1, 2], [1, 1], 1),
    "dilation": ((1, 3, 11, 10), (59, 3, 3, 3), [1, 1], [2, 1], [2, 3], 1),
    "stride and dilation": ((1, 3, 14, 15), (62, 3, 3, 3), [4, 2], [0, 3], [6, 3], 1),
    "stride larger than the kernel": ((2, 3, 7, 7), (55, 3, 1, 2), [2, 3], [0, 1], [1, 1], 1),
    "1x1": ((2, 19, 3, 4), (53, 19, 1, 1), [1, 1], [0, 0], [1, 1], 1),
    "groups": ((2, 6, 5, 5), (60, 3, 3, 3), [1, 2], [1, 1], [1, 1], 2),
    "depthwise": ((2, 3, 6, 5), (3, 1, 3, 3), [1, 1], [1, 1], [1, 1], 3),
    "twenty outputs per channel": ((2, 2, 6, 5), (40, 1, 3, 3), [2, 1], [1, 1], [1, 1], 2),
    "many channels": ((1, 40, 4, 4), (61, 40, 2, 2), [1, 1], [1, 0], [1, 1], 1),
    "whole units": ((1, 16, 5, 5), (56, 16, 3, 3), [2, 1], [1, 1], [1, 1], 1),
    "padding beyond the window": ((1, 2, 3, 2), (59, 2, 2, 2), [1, 1], [3, 2], [1, 1], 1),
    "3d": ((1, 3, 4, 5, 3), (57, 3, 2, 3, 2), [2, 1, 1], [1, 1, 0], [1, 2, 1], 1),
}
# each case once with relu or without; the other one is slow
RELUS = [
    pytest.param(name, relu, marks=[pytest.mark.slow] if relu == bool(k % 2) else [])
    for k, name in enumerate(CASES)
    for relu in (False, True)
]
SOME = ["2d", "stride and dilation", "groups", "whole units", "3d"]


def make(case, dtype, device, alive="half", last=False, parameters=None):
    """x, weight, bias, theta, grad."""
    shape, kernel, stride, padding, dilation, groups = case
    x, weight, bias, theta = torch.randn(shape), torch.randn(kernel), torch.randn(kernel[0]), torch.randn(kernel[0])
    theta = {"none": -theta.abs(), "all": theta.abs() + 0.1}.get(alive, theta)
    if alive == "one":
        theta = -theta.abs()
        theta[kernel[0] // 2] = 0.5
    grad = torch.randn_like(
        torch.convolution(x, weight, None, stride, padding, dilation, False, [0] * len(stride), groups)
    )
    tensors = [x.to(device, dtype), *(t.to(device, parameters or dtype) for t in (weight, bias, theta))]
    tensors.append(grad.to(device, dtype))
    if last and x.dim() > 3:
        memory_format = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
        tensors = [t.contiguous(memory_format=memory_format) if t.dim() > 1 else t for t in tensors]
    return tensors


def unfused(x, weight, bias, theta, stride, padding, dilation, groups, relu):
    function = (F.conv1d, F.conv2d, F.conv3d)[len(stride) - 1]
    y = function(x, weight, bias, stride, padding, dilation, groups) * reference.along(torch.relu(theta), x.dim(), 1)
    return torch.relu(y) if relu else y


def results(function, tensors, options, relu, dtype=None):
    """Output and the gradients of x, weight, bias and theta, computed in ``dtype``."""
    *inputs, grad = tensors
    inputs = [None if t is None else t.detach().to(dtype or t.dtype).requires_grad_() for t in inputs]
    out = function(*inputs, *options, relu)
    out.backward(grad.to(out.dtype))
    return [out.detach(), *(t.grad for t in inputs if t is not None)]


def check(draws, options, relu, has_bias=True):
    """Each of the five results, pooled over ``draws``, is no worse than the unfused composition's; dead channels are zeros."""
    got, theirs, exact = [], [], []
    for x, weight, bias, theta, grad in draws:
        tensors = (x, weight, bias if has_bias else None, theta, grad)
        got.append(results(conv, tensors, options, relu))
        theirs.append(results(unfused, tensors, options, relu))
        exact.append(results(unfused, tensors, options, relu, torch.float64))
        dead = theta <= 0
        out, _, *gradients = got[-1]
        assert (out[:, dead] == 0).all() and all((g[dead] == 0).all() for g in gradients)
        assert [(t.dtype, t.shape) for t in got[-1]] == [(t.dtype, t.shape) for t in theirs[-1]]
    for one in zip(zip(*got, strict=True), zip(*theirs, strict=True), zip(*exact, strict=True), strict=True):
        assert_no_worse(*one)


def check_reference(tensors, options, relu):
    """Forward and backward against the float64 reference, for what is not a question of accuracy."""
    *inputs, grad = tensors
    out = ops.conv(*inputs, *options, relu)
    assert_close(out, reference.conv(*wide(*inputs), *options, relu))
    saved = out if relu else None
    got = ops.conv_backward(grad, *inputs, *options, saved)
    for tensor, expected in zip(got, reference.conv_backward(*wide(grad, *inputs), *options, saved), strict=True):
        assert_close(tensor, expected)
    return out, got


@pytest.fixture(autouse=True)
def large_programs(monkeypatch, kernel_device):
    """The interpreter's time goes by operations, not by elements."""
    if kernel_device == "cpu":
        blocks = dict.fromkeys(("small", "large", "gathered", "wide"), (32, 64, 64, 4, 2))
        monkeypatch.setattr(conv_blocks, "BLOCKS", dict.fromkeys(conv_blocks.BLOCKS, blocks))


@pytest.mark.parametrize(("name", "relu"), RELUS)
def test_no_worse_than_unfused(name, relu, kernel_device):
    # about 90 living channels, so that luck with few gradients of theta evens out; of 3 channels 30 do (a draw takes 0.4 s here)
    draws = min(180 // CASES[name][1][0], 20)
    draws = [make(CASES[name], torch.float32, kernel_device) for _ in range(draws)]
    check(draws, CASES[name][2:], relu, has_bias=relu)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", SOME)
def test_half_types_are_no_worse_than_unfused(name, dtype, kernel_device):
    check([make(CASES[name], dtype, kernel_device) for _ in range(2)], CASES[name][2:], relu=True)


def test_the_real_table_of_blocks(kernel_device, monkeypatch):
    monkeypatch.undo()
    for name in ("1x1", "whole units"):
        check_reference(make(CASES[name], torch.bfloat16, kernel_device, last=True), CASES[name][2:], True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SOME)
def test_channels_last_stays(name, dtype, kernel_device):
    draws = [make(CASES[name], dtype, kernel_device, last=True) for _ in range(3)]
    check(draws, CASES[name][2:], relu=True)
    x, weight, bias, theta, grad = draws[0]
    memory_format = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    out = ops.conv(x, weight, bias, theta, *CASES[name][2:], True)
    dx, dweight, *_ = ops.conv_backward(grad, x, weight, bias, theta, *CASES[name][2:], out)
    assert all(t.is_contiguous(memory_format=memory_format) for t in (out, dx, dweight))
    plain = ops.conv(x.contiguous(), weight.contiguous(), bias, theta, *CASES[name][2:], True)
    assert plain.is_contiguous() and torch.allclose(plain, out, rtol=2e-2, atol=1e-2)


@pytest.mark.parametrize("alive", ["none", "one", "all"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_all_dead_one_alive_none_dead(alive, dtype, kernel_device):
    case = ((2, 3, 5, 4), (9, 3, 3, 2), *CASES["2d"][2:])
    check([make(case, dtype, kernel_device, alive) for _ in range(8)], case[2:], relu=True)


@pytest.fixture
def many_tiles(monkeypatch, large_programs):
    """The least blocks, so that small tensors take several programs along every dimension, and several parts."""
    small = {"small": (16, 16, 16, 4, 2), "large": (32, 16, 16, 4, 2), "gathered": (16, 16, 16, 4, 2)}
    monkeypatch.setattr(conv_blocks, "BLOCKS", dict.fromkeys(conv_blocks.BLOCKS, small | {"wide": (16, 16, 16, 4, 2)}))
    monkeypatch.setattr(conv_blocks, "LEAST_STEPS", 1)
    monkeypatch.setattr(conv_blocks, "PROGRAMS", 24)
    monkeypatch.setattr(conv_launch, "FINISH", {"BLOCK_P": 2, "BLOCK_K": 32, "num_warps": 4})


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("name", ["2d", "1x1", "groups", "many channels", "whole units", "3d"])
def test_many_tiles(name, last, kernel_device, many_tiles, nan_filled):
    check_reference(make(CASES[name], torch.float32, kernel_device, last=last), CASES[name][2:], True)


@pytest.mark.parametrize("name", ["stride and dilation", "3d"])
def test_offsets_of_64_bits(name, kernel_device, monkeypatch):
    monkeypatch.setattr(conv_launch, "NARROW", 0)
    check_reference(make(CASES[name], torch.float32, kernel_device), CASES[name][2:], True)


@pytest.mark.parametrize("relu", [False, True])
def test_no_images(relu, kernel_device, nan_filled):
    x, weight = torch.randn(0, 3, 5, 5, device=kernel_device), torch.randn(4, 3, 3, 3, device=kernel_device)
    bias, theta = torch.randn(2, 4, device=kernel_device)
    for tensors in ((x, weight, bias, theta), (x, weight, None, theta)):
        out = ops.conv(*tensors, [1, 2], [1, 1], [1, 1], 1, relu)
        assert out.shape == (0, 4, 5, 3)
        saved = out if relu else None
        dx, *gradients = ops.conv_backward(out, *tensors, [1, 2], [1, 1], [1, 1], 1, saved)
        assert dx.shape == x.shape and all((g == 0).all() for g in gradients)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("relu", [False, True])
def test_dead_channels_are_zero_whatever_they_hold(poison, relu, kernel_device):
    case = ((2, 3, 5, 5), (6, 3, 3, 3), [2, 1], [1, 1], [1, 1], 1)
    tensors = make(case, torch.float32, kernel_device)
    _, weight, bias, theta, grad = tensors
    theta.copy_(torch.tensor([0.0, -1, -0.0, 1, 2, -float("inf")]))
    dead = theta <= 0
    clean = results(conv, tensors, case[2:], relu)
    for t in (weight, bias):
        t[dead] = poison
    grad[:, dead] = poison
    for tensor, expected in zip(results(conv, tensors, case[2:], relu), clean, strict=True):
        assert torch.equal(tensor, expected)


def test_a_nan_theta_is_not_dead_and_a_nan_survives_relu(kernel_device):
    tensors = make(CASES["2d"], torch.float32, kernel_device, "all")
    tensors[3][1] = float("nan")
    out, dx, dweight, *_ = results(conv, tensors, CASES["2d"][2:], True)
    assert out[:, 1].isnan().all() and dx.isnan().any() and dweight[1].isnan().all()
    assert out[:, [0, 2]].isfinite().all() and dweight[[0, 2]].isfinite().all()


def strided(t, layout):
    """``t`` with another layout: the same values, in memory that is larger or ordered otherwise."""
    if t.dim() == 1:
        return torch.stack([t, t], 1)[:, 1]
    if layout == "transposed":
        return t.transpose(0, 3).contiguous().transpose(0, 3)
    if layout == "step":
        return t.repeat_interleave(2, 1).repeat_interleave(3, 3)[:, ::2, :, ::3]
    if layout == "padded":  # channels-last, and still read 16 bytes at a time
        t = F.pad(t, (0, 1, 0, 0, 0, 8)).contiguous(memory_format=torch.channels_last)
        return t[:, : t.shape[1] - 8, :, :-1]
    return F.pad(t, (1, 0, 2, 0, 1, 0))[:, 1:, 2:, 1:]


@pytest.mark.parametrize("layout", ["transposed", "step", "padded", "offset"])
@pytest.mark.parametrize("name", ["stride", "whole units"])
def test_strides_change_nothing(layout, name, kernel_device):
    tensors = make(CASES[name], torch.float32, kernel_device)
    options = CASES[name][2:]
    expected, gradients = check_reference(tensors, options, True)
    *inputs, grad = (strided(t, layout) for t in tensors)
    out = ops.conv(*inputs, *options, True)
    got = ops.conv_backward(grad, *inputs, *options, strided(out, layout))
    for a, b in zip((out, *got), (expected, *gradients), strict=True):
        assert_close(a, b.double())


def test_a_gradient_that_is_one_number_expanded(kernel_device):
    x, weight, bias, theta, _ = make(CASES["whole units"], torch.float32, kernel_device, last=True)
    out = reference.conv(x, weight, bias, theta, *CASES["whole units"][2:])
    check_reference(
        (x, weight, bias, theta, torch.ones((), device=kernel_device).expand_as(out)), CASES["whole units"][2:], False
    )


def test_offset_views_leave_their_surroundings_alone(kernel_device):
    case = ((1, 2, 3, 3), (2, 2, 2, 2), [1, 1], [1, 1], [1, 1], 1)
    for x, untouched in slid_views(case[0], torch.bfloat16, kernel_device):
        tensors = make(case, torch.bfloat16, kernel_device)
        check_reference((x, *tensors[1:]), case[2:], False)
        untouched()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_wider_parameters_as_under_autocast(dtype, kernel_device):
    tensors = make(CASES["2d"], dtype, kernel_device, parameters=torch.float32)
    out, dx, *gradients = results(conv, tensors, CASES["2d"][2:], True)
    assert out.dtype == dx.dtype == dtype and all(g.dtype == torch.float32 for g in gradients)
    rounded = [tensors[0], tensors[1].to(dtype).float(), *tensors[2:]]
    for got, expected in zip(
        (out, dx, *gradients), results(unfused, rounded, CASES["2d"][2:], True, torch.float64), strict=True
    ):
        assert_close(got, expected, dtype)


def test_the_result_does_not_change_from_run_to_run(kernel_device, many_tiles):
    tensors = make(CASES["many channels"], torch.float32, kernel_device)
    first = results(conv, tensors, CASES["many channels"][2:], True)
    assert all(
        torch.equal(a, b) for a, b in zip(first, results(conv, tensors, CASES["many channels"][2:], True), strict=True)
    )


def test_only_what_is_needed_gets_a_gradient_and_twice_is_refused(kernel_device):
    x, weight, bias, theta, _ = make(CASES["2d"], torch.float32, kernel_device)
    options = CASES["2d"][2:]
    out = ops.conv(x, weight, bias, theta, *options)
    dx, *rest = ops.conv_backward(out, x, weight, bias, theta, *options, None, False, True)
    assert not dx.numel() and all(t.numel() for t in rest)
    dx, *rest = ops.conv_backward(out, x, weight, bias, theta, *options, None, True, False)
    assert dx.numel() and not any(t.numel() for t in rest)
    out = conv(x.requires_grad_(), weight.requires_grad_(), bias, theta, *options)
    (grad,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_what_is_saved_is_what_the_plain_layer_saves(kernel_device):
    x, weight, bias, theta, _ = make(CASES["2d"], torch.float32, kernel_device)
    for relu in (False, True):
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):  # noqa: B023
            out = conv(x.requires_grad_(), weight, bias, theta, *CASES["2d"][2:], relu)
        inputs = {t.data_ptr() for t in (x, weight, bias, theta)}
        assert {t.data_ptr() for t in saved} == inputs | ({out.data_ptr()} if relu else set())


X, W, T = torch.ones(1, 4, 5, 5), torch.ones(6, 4, 3, 3), torch.ones(6)
ONE, NONE = [1, 1], [0, 0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((X[0, 0], W, None, T, ONE, NONE, ONE, 1), r"conv: x has shape \(5, 5\), expected 3 to 5 dimensions"),
        ((X, W[0], None, T, ONE, NONE, ONE, 1), r"conv: weight has shape \(4, 3, 3\), expected 4 dimensions as x"),
        (
            (X[:, :0], W[:, :0], None, T, ONE, NONE, ONE, 1),
            r"conv: weight has shape \(6, 0, 3, 3\), expected at least one",
        ),
        ((X, W, None, T, [0, 1], NONE, ONE, 1), r"conv: stride is \[0, 1\], expected 2 integers of at least 1"),
        ((X, W, None, T, ONE, [0], ONE, 1), r"conv: padding is \[0\], expected 2 integers of at least 0"),
        ((X, W, None, T, ONE, NONE, [1, 0], 1), r"conv: dilation is \[1, 0\], expected 2 integers"),
        ((X, W, None, T, ONE, NONE, ONE, 4), "conv: groups is 4, expected a divisor of 6"),
        ((X, W, None, T, ONE, NONE, ONE, 2), r"conv: x has shape \(1, 4, 5, 5\), expected 8 channels for weight"),
        ((X, W, None, T[:5], ONE, NONE, ONE, 1), r"conv: theta has shape \(5,\), expected \(6,\) to match weight"),
        ((X, W, T[:, None], T, ONE, NONE, ONE, 1), r"conv: bias has shape \(6, 1\), expected \(6,\)"),
        ((X.double(), W, None, T, ONE, NONE, ONE, 1), "conv: x has dtype float64, expected float32, float16 or"),
        (
            (X, W, None, T, ONE, NONE, [3, 1], 1),
            r"conv: x has shape .* a kernel \(3, 3\) with dilation \[3, 1\] fits into",
        ),
    ],
)
def test_bad_arguments_are_named(arguments, words):
    with pytest.raises(RuntimeError, match=words):
        ops.conv(*arguments)


@pytest.mark.gpu
def test_huge_strides():
    """Images more than 2^31 elements apart."""
    apart = 2**31 + 8
    buffer = torch.zeros(apart + 75, dtype=torch.float16, device="cuda")
    x = buffer.as_strided((2, 3, 5, 5), (apart, 25, 5, 1)).copy_(torch.randn(2, 3, 5, 5))
    tensors = make(((2, 3, 5, 5), (4, 3, 3, 3), ONE, ONE, ONE, 1), torch.float16, "cuda")
    check_reference((x, *tensors[1:]), (ONE, ONE, ONE, 1), True)


def test_two_dimensions_of_stride_one(kernel_device):
    """Windows of a signal, overlapping: channels are not the only ones side by side."""
    x = torch.randn(3, 64, device=kernel_device).unfold(-1, 8, 1)[:, :16].unsqueeze(2)
    weight = torch.randn(8, 16, 1, 3, device=kernel_device).contiguous(memory_format=torch.channels_last)
    options = [torch.ones(8, device=kernel_device), [1, 1], [0, 0], [1, 1], 1]
    torch.testing.assert_close(ops.conv(x, weight, None, *options), ops.conv(x.contiguous(), weight, None, *options))
