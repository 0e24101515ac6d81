"""What every op owes to torch: a schema that tells the truth, a fake, tracing and compiling."""

import pytest
import torch
from torch.utils import _pytree as pytree

import shrinknets_fast as sn

ops = torch.ops.shrinknets_fast
W, B, T = torch.randn(6, 4, 3), torch.randn(6), torch.randn(6)
X = torch.randn(3, 6, 5)
KEPT = [torch.tensor([0, 2]), torch.tensor([0, 5, 2])]

CASES = {
    "fold": [(W, B, T), (W, None, T), (W, B, T, torch.bfloat16), (W.transpose(1, 2), B, T.double())],
    "fold_backward": [(W, B, W, B, T), (W, None, W, None, T), (W.bfloat16(), None, W, B, T)],
    "compact_": [([W.clone(), X.clone()], KEPT, [0, 0, 1], [0, 1, 1], [1, 0, 1])],
    "filter": [(X, T), (X.transpose(1, 2), T, 2), (X, torch.ones(1)), (X.bfloat16(), T)],
    "filter_backward": [(X, X, T), (X, X, torch.ones(1)), (X.transpose(1, 2), X.transpose(1, 2), T, -1)],
}


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


@pytest.mark.parametrize("name", CASES)
def test_opcheck(name, device):
    for args in CASES[name]:
        torch.library.opcheck(getattr(ops, name).default, moved(args, device, keep=KEPT))


@pytest.mark.parametrize("name", CASES)
def test_fakes_agree_on_strides_and_dtypes(name):
    for args in CASES[name]:
        real = getattr(ops, name)(*args)
        meta = getattr(ops, name)(*moved(args, "meta"))
        for r, m in zip(*([t] if isinstance(t, torch.Tensor) else t or () for t in (real, meta)), strict=True):
            assert (r.shape, r.stride(), r.dtype) == (m.shape, m.stride(), m.dtype)


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
