"""Every call that an op refuses: one line that names the argument, the same from the kernel and from the fake."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

ops = torch.ops.shrinknets_fast
W, B, T = torch.ones(10, 3), torch.ones(10), torch.ones(10)
X = torch.ones(2, 10, 3)
FLOATS = "expected float64, float32, float16 or bfloat16"
BAD_CALLS = [
    ("fold", (torch.ones(()), None, T), "weight has shape (), expected at least one dimension"),
    ("fold", (torch.ones([1] * 9), None, T[:1]), "weight has 9 dimensions, expected 1 to 8"),
    ("fold", (torch.ones([0] + [1] * 8), None, T[:0]), "weight has 9 dimensions, expected 1 to 8"),
    ("fold", (W.long(), B, T), f"weight has dtype int64, {FLOATS}"),
    ("fold", (W, B, T.to(torch.complex64)), f"theta has dtype complex64, {FLOATS}"),
    ("fold", (W, B, torch.ones(5)), "theta has shape (5,), expected (10,) to match weight (10, 3)"),
    ("fold", (W, B, torch.ones(10, 1)), "theta has shape (10, 1), expected (10,) to match weight (10, 3)"),
    ("fold", (B, None, torch.ones(())), "theta has shape (), expected (10,) to match weight (10,)"),
    ("fold", (W, B.bool(), T), f"bias has dtype bool, {FLOATS}"),
    ("fold", (W, torch.ones(10, 1), T), "bias has shape (10, 1), expected (10,) to match weight (10, 3)"),
    ("fold", (W, B, T, torch.int32), f"dtype has dtype int32, {FLOATS}"),
    ("fold", (W, B, T, torch.float8_e5m2), f"dtype has dtype float8_e5m2, {FLOATS}"),
    ("fold_backward", (W, B, torch.ones(()), B, T), "weight has shape (), expected at least one dimension"),
    ("fold_backward", (W, B, W, B, torch.ones(5)), "theta has shape (5,), expected (10,) to match weight (10, 3)"),
    ("fold_backward", (W, B, W, torch.ones(5), T), "bias has shape (5,), expected (10,) to match weight (10, 3)"),
    ("fold_backward", (W.int(), B, W, B, T), f"grad_weight has dtype int32, {FLOATS}"),
    ("fold_backward", (W.t(), B, W, B, T), "grad_weight has shape (3, 10), expected (10, 3) as weight"),
    ("fold_backward", (B, B, W, B, T), "grad_weight has shape (10,), expected (10, 3) as weight"),
    ("fold_backward", (W, B, W, None, T), "grad_bias is given, expected None as bias"),
    ("fold_backward", (W, B.short(), W, B, T), f"grad_bias has dtype int16, {FLOATS}"),
    ("fold_backward", (W, torch.ones(3), W, B, T), "grad_bias has shape (3,), expected (10,) as bias"),
    ("filter", (X.int(), T), f"x has dtype int32, {FLOATS}"),
    ("filter", (X, T.to(torch.uint8)), f"theta has dtype uint8, {FLOATS}"),
    ("filter", (X, torch.ones(10, 1)), "theta has shape (10, 1), expected one dimension"),
    ("filter", (X, torch.ones(())), "theta has shape (), expected one dimension"),
    ("filter", (torch.ones(()), torch.ones(2)), "x has shape (), expected a dimension of size 2"),
    ("filter", (X, T, 3), "dim is 3, expected -3 to 2 for x (2, 10, 3)"),
    ("filter", (X, T, -4), "dim is -4, expected -3 to 2 for x (2, 10, 3)"),
    ("filter", (X, torch.ones(5)), "theta has shape (5,), expected (10,) to match dimension 1 of x (2, 10, 3)"),
    ("filter", (X, torch.ones(5), -1), "theta has shape (5,), expected (3,) to match dimension 2 of x (2, 10, 3)"),
    ("filter", (X, T[:0]), "theta has shape (0,), expected (10,) to match dimension 1 of x (2, 10, 3)"),
    ("aliveness", ([T, W], [0, 1]), "thetas[1] has shape (10, 3), expected one dimension without gaps"),
    ("aliveness", ([T, T.long()], [0, 1]), f"thetas[1] has dtype int64, {FLOATS}"),
    ("aliveness", ([T, T], [0]), "group has 1 entries, expected 2"),
    ("aliveness", ([T, T], [0, 2]), "group holds 2 at position 1, expected 1"),
    ("aliveness", ([T, T[:5]], [0, 0]), "thetas[1] has shape (5,), expected (10,) as its group"),
    ("bury_", ([T, W], [], []), "thetas[1] has shape (10, 3), expected one dimension without gaps"),
    ("bury_", ([T], [T], []), "owner has 0 entries, expected 1"),
    ("bury_", ([T], [T], [1]), "owner holds 1, expected 0 to 0"),
    ("bury_", ([T], [T[:5]], [0]), "state[0] has shape (5,), expected (10,) as its theta"),
    ("filter_backward", (X, X, T, 3), "dim is 3, expected -3 to 2 for x (2, 10, 3)"),
    ("filter_backward", (X.long(), X, T), f"grad has dtype int64, {FLOATS}"),
    ("filter_backward", (X[:1], X, T), "grad has shape (1, 10, 3), expected (2, 10, 3) as x"),
    ("filter_backward", (X, X[:1], T[:1]), "grad has shape (2, 10, 3), expected (1, 10, 3) as x"),
]
LAST = "to match the last dimension of x (2, 10, 3)"
N, R = torch.ones(3), torch.ones(20)  # layer_norm of X: weight, bias and theta; mean and rstd
BAD_CALLS += [
    ("layer_norm", (torch.ones(()), None, None, N, 1e-5), "x has shape (), expected at least one dimension"),
    ("layer_norm", (X.int(), N, N, N, 1e-5), f"x has dtype int32, {FLOATS}"),
    ("layer_norm", (X, N, N, T, 1e-5), f"theta has shape (10,), expected (3,) {LAST}"),
    ("layer_norm", (X, T, N, N, 1e-5), f"weight has shape (10,), expected (3,) {LAST}"),
    ("layer_norm", (X, N, N[None], N, 1e-5), f"bias has shape (1, 3), expected (3,) {LAST}"),
    ("layer_norm", (X, N, N.long(), N, 1e-5), f"bias has dtype int64, {FLOATS}"),
    ("layer_norm_backward", (X[:1], X, R, R, N, N, N), "grad has shape (1, 10, 3), expected (2, 10, 3) as x"),
    (
        "layer_norm_backward",
        (X, X, R[:5], R, N, N, N),
        "mean has shape (5,), expected (20,) to match the rows of x (2, 10, 3)",
    ),
    (
        "layer_norm_backward",
        (X, X, R, R, N, N, N, True),
        "mean has shape (20,), expected (0,) to match the rows of x (2, 10, 3)",
    ),
    (
        "layer_norm_backward",
        (X, X, R, R[:5], N, N, N),
        "rstd has shape (5,), expected (20,) to match the rows of x (2, 10, 3)",
    ),
    ("layer_norm_backward", (X, X, R, R.int(), N, N, N), f"rstd has dtype int32, {FLOATS}"),
    ("group_norm", (B, B, B, T, 2, 1e-5), "x has shape (10,), expected (B, C, ...)"),
    ("group_norm", (X, T, T, N, 2, 1e-5), "theta has shape (3,), expected (10,) to match dimension 1 of x (2, 10, 3)"),
    ("group_norm", (X, N, T, T, 2, 1e-5), "weight has shape (3,), expected (10,) to match dimension 1 of x (2, 10, 3)"),
    ("group_norm", (X, T, T, T, 3, 1e-5), "groups is 3, expected a divisor of the 10 channels of x"),
    ("group_norm", (X, T, T, T, 0, 1e-5), "groups is 0, expected a divisor of the 10 channels of x"),
]
ELSEWHERE = [  # (op, good arguments, which of them is left on the CPU, message)
    ("fold", (W, B, T), 2, "theta is on cpu, expected cuda:0 as weight"),
    ("fold", (W, B, T), 1, "bias is on cpu, expected cuda:0 as weight"),
    ("fold", (W, B, T), 0, "theta is on cuda:0, expected cpu as weight"),
    ("fold_backward", (W, B, W, B, T), 0, "grad_weight is on cpu, expected cuda:0 as weight"),
    ("fold_backward", (W, B, W, B, T), 1, "grad_bias is on cpu, expected cuda:0 as weight"),
    ("filter", (X, T), 1, "theta is on cpu, expected cuda:0 as x"),
    ("filter_backward", (X, X, T), 0, "grad is on cpu, expected cuda:0 as x"),
]


def refusal(name, args):
    with pytest.raises(RuntimeError) as error:
        getattr(ops, name)(*args)
    return str(error.value)


def mapped(change, args):
    return pytree.tree_map_only(torch.Tensor, change, list(args))


@pytest.mark.parametrize(("name", "args", "message"), BAD_CALLS, ids=lambda v: v if isinstance(v, str) else "")
def test_kernel_and_fake_refuse_in_the_same_words(name, args, message, device):
    moved = mapped(lambda t: t.to(device), args)
    assert refusal(name, moved) == f"{name}: {message}"
    with FakeTensorMode() as mode:
        assert refusal(name, mapped(mode.from_tensor, moved)) == f"{name}: {message}"
    assert refusal(name, mapped(lambda t: t.to("meta"), args)) == f"{name}: {message}"


@pytest.mark.parametrize(("name", "args", "left", "message"), ELSEWHERE, ids=lambda v: v if isinstance(v, str) else "")
def test_a_fake_refuses_two_devices(name, args, left, message):
    with FakeTensorMode():
        fakes = [torch.empty(a.shape, device="cpu" if i == left else "cuda:0") for i, a in enumerate(args)]
        assert refusal(name, fakes) == f"{name}: {message}"


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "args", "left", "message"), ELSEWHERE, ids=lambda v: v if isinstance(v, str) else "")
def test_a_kernel_refuses_two_devices(name, args, left, message):
    assert refusal(name, [a if i == left else a.cuda() for i, a in enumerate(args)]) == f"{name}: {message}"
