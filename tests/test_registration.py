"""What every op owes to torch: a schema that tells the truth, a fake, tracing and compiling."""

import pytest
import torch
from conftest import INTERPRETED
from torch.utils import _pytree as pytree

import shrinknets_fast as sn

ops = torch.ops.shrinknets_fast
W, B, T = torch.randn(6, 4, 3), torch.randn(6), torch.randn(6)
X = torch.randn(3, 6, 5)
KEPT = [torch.tensor([0, 2]), torch.tensor([0, 5, 2])]
K, WINDOW = torch.randn(6, 5, 2, 3), ([1, 2], [1, 0], [1, 1], 1)  # conv: weight, window
IMAGES, PIXELS = torch.randn(2, 5, 4, 7), torch.randn(2, 6, 5, 3)  # conv: x, gradient of the output
Y, M, G = torch.randn(2, 3, 5), torch.randn(6, 5), torch.randn(2, 3, 6)  # linear: x, weight, grad
L, T5, R = torch.randn(5), torch.randn(5), torch.rand(6)  # layer_norm of Y: weight and bias, theta, mean and rstd
STATS = torch.rand(3, 2)  # group_norm of X: mean and rstd

CASES = {
    "fold": [(W, B, T), (W, None, T), (W, B, T, torch.bfloat16), (W.transpose(1, 2), B, T.double())],
    "fold_backward": [(W, B, W, B, T), (W, None, W, None, T), (W.bfloat16(), None, W, B, T)],
    "aliveness": [([T, B, B], [0, 1, 1])],
    "bury_": [([T.clone(), B.clone()], [T.clone(), B.clone()], [0, 1])],
    "compact_": [([W.clone(), X.clone()], KEPT, [0, 0, 1], [0, 1, 1], [1, 0, 1])],
    "filter": [(X, T), (X.transpose(1, 2), T, 2), (X, torch.ones(1)), (X.bfloat16(), T), (X, T, 1, True)],
    "filter_backward": [
        (X, X, T),
        (X, X, torch.ones(1)),
        (X.transpose(1, 2), X.transpose(1, 2), T, -1),
        (X, X.relu(), T, 1, True),
    ],
    "layer_norm": [(Y, L, L, T5, 1e-5), (Y, None, None, T5, 1e-5, True), (Y.bfloat16(), L, None, T5.double(), 1e-5)],
    "layer_norm_backward": [
        (Y, Y, R, R, L, L, T5),
        (Y, Y, R[:0], R, None, None, T5, True),
        (Y.bfloat16(), Y.bfloat16(), R, R, L, None, T5, False, True, False),
        (Y, Y, R, R, L, L, T5, False, False),
    ],
    "group_norm": [
        (X, B, B, T, 3, 1e-5),
        (X, None, None, T, 1, 1e-5),
        (PIXELS.bfloat16(), B, None, T.double(), 2, 1e-5),
    ],
    "group_norm_backward": [
        (X, X, STATS, STATS, B, B, T, 2),
        (X.bfloat16(), X.bfloat16(), STATS, STATS, None, None, T, 2),
    ],
    "alive_product": [(G * (B > 0), M, B), (G[0], M, B.abs())],
    "alive_conv_input": [(PIXELS * (B > 0).view(6, 1, 1), IMAGES, K, B, *WINDOW)],
    "conv": [(IMAGES, K, B, T, *WINDOW), (IMAGES, K, None, T, *WINDOW, True), (IMAGES.bfloat16(), K, B, T, *WINDOW)],
    "conv_backward": [
        (PIXELS, IMAGES, K, B, T, *WINDOW),
        (PIXELS, IMAGES, K, None, T, *WINDOW, PIXELS),
        (PIXELS, IMAGES, K, B, T, *WINDOW, None, False),
        (PIXELS, IMAGES, K, B, T, *WINDOW, None, True, False),
    ],
    "linear": [(Y, M, B, T), (Y, M, None, T, True), (Y.bfloat16(), M, B, T), (Y[0], M, B, T)],
    "linear_backward": [
        (G, Y, M, B, T),
        (G, Y, M, None, T, G),
        (G, Y, M, B, T, None, False),
        (G, Y, M, B, T, G, True, False),
    ],
}
TRITON = {"conv", "conv_backward", "linear", "linear_backward"}  # on the CPU only where Triton is interpreted


def test_every_op_has_cases():
    names = {
        name.split("::")[1].split(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if "shrinknets_fast::" in name
    }
    assert names == set(CASES)


def moved(args, device, keep=()):
    """The arguments on ``device``; kept lists stay on the CPU."""
    return pytree.tree_map_only(
        torch.Tensor, lambda t: t if any(t is k for k in keep) else t.to(device, copy=True), list(args)
    )


def skip_where_it_cannot_run(name, device):
    if name in TRITON and device == "cpu" and not INTERPRETED:
        pytest.skip("Triton kernels run on the GPU here")


@pytest.mark.parametrize("name", CASES)
def test_opcheck(name, device):
    skip_where_it_cannot_run(name, device)
    for args in CASES[name]:
        torch.library.opcheck(getattr(ops, name).default, moved(args, device, keep=KEPT))


@pytest.mark.parametrize("name", CASES)
def test_fakes_agree_on_strides_and_dtypes(name):
    skip_where_it_cannot_run(name, "cpu")
    for args in CASES[name]:
        real = getattr(ops, name)(*args)
        meta = getattr(ops, name)(*moved(args, "meta"))
        for r, m in zip(*([t] if isinstance(t, torch.Tensor) else t or () for t in (real, meta)), strict=True):
            assert (r.shape, r.stride(), r.dtype) == (m.shape, m.stride(), m.dtype)


@pytest.mark.parametrize(
    "call",
    [
        lambda t: ops.fold(W, B, t),
        lambda t: ops.filter(X, t),
        lambda t: ops.linear(Y, M, B, t),
        lambda t: ops.layer_norm(X, None, None, t, 1e-5),
        lambda t: ops.group_norm(X, None, None, t, 2, 1e-5),
        lambda t: ops.conv(IMAGES, K, B, t, *WINDOW),
    ],
)
def test_fakes_refuse_what_kernels_refuse(call):
    with (
        torch._subclasses.fake_tensor.FakeTensorMode(allow_non_fake_inputs=True),
        pytest.raises(RuntimeError, match="theta has shape"),
    ):
        call(torch.ones(4))


def layers():
    return torch.nn.Sequential(
        sn.FilteredConv2d(2, 4, 3, activation="relu"),
        sn.FilteredBatchNorm2d(4),
        torch.nn.Flatten(),
        sn.FilteredLinear(64, 3),
        sn.Filter(3),
    )


def test_export_sees_the_ops():
    program = torch.export.export(layers(), (torch.randn(2, 2, 6, 6),), strict=False)
    targets = [node.target for node in program.graph.nodes]
    assert targets.count(ops.fold.default) == 3 and targets.count(ops.filter.default) == 1


def test_compile_of_the_whole_graph_gives_the_same_gradients():
    model, x = layers().double(), torch.randn(2, 2, 6, 6, dtype=torch.float64)
    model(x).square().sum().backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    torch.compile(model, fullgraph=True, backend="aot_eager")(x).square().sum().backward()
    for p, grad in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, grad)
