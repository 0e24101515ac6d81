import pytest
import torch
import torch.nn.functional as F
from closeness import assert_close, assert_no_worse
from conftest import INTERPRETED

import shrinknets_fast as sn
from shrinknets_fast import dispatch
from shrinknets_fast.__main__ import main

PATHS = dispatch.PATHS
ops = torch.ops.shrinknets_fast


def on(path):
    """The device on which a path is tested: Triton's kernels run on the CPU only where they are interpreted."""
    return "cuda" if path == "triton" and not INTERPRETED else "cpu"


def layer_of(path, columns=24, features=16, dtype=torch.float32, **options):
    layer = sn.FilteredLinear(columns, features, device=on(path), dtype=dtype, **options)
    layer.path = path
    with torch.no_grad():
        layer.theta[::3] = -0.5
    return layer


def unfused(layer, x):
    y = F.linear(x, layer.weight, layer.bias) * torch.relu(layer.theta)
    return torch.relu(y) if layer.activation else y


def step(call, layer, x, grad):
    """Output and the gradients of x and of the parameters."""
    x = x.detach().requires_grad_()
    parameters = list(layer.parameters())
    out = call(x)
    return [out.detach(), *torch.autograd.grad(out, [x, *parameters], grad.to(out.dtype))]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_path_is_worse_than_unfused(path, activation, dtype):
    if path == "fold" and activation and dtype == torch.bfloat16:
        pytest.skip("signs flip: test_relu_behind_half_weights_is_never_folded")
    layer = layer_of(path, dtype=dtype, activation=activation)
    wide = layer_of(path, dtype=torch.float64, activation=activation)
    wide.load_state_dict(layer.state_dict())
    got, theirs, exact = [], [], []
    for _ in range(8):
        x, grad = torch.randn(40, 24, device=on(path), dtype=dtype), torch.randn(40, 16, device=on(path), dtype=dtype)
        got.append(step(layer, layer, x, grad))
        theirs.append(step(lambda x: unfused(layer, x), layer, x, grad))
        exact.append(step(lambda x: unfused(wide, x), wide, x.double(), grad.double()))
    for results in zip(zip(*got, strict=True), zip(*theirs, strict=True), zip(*exact, strict=True), strict=True):
        assert_no_worse(*results)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("shape", [(0, 24), (2, 3, 24), (24,)], ids=str)
def test_every_path_takes_any_batch(path, shape):
    layer = layer_of(path, activation="relu")
    x = torch.randn(shape, device=on(path))
    grad = torch.randn(*shape[:-1], 16, device=on(path))
    expected = step(lambda x: unfused(layer, x), layer, x, grad)
    for a, b in zip(step(layer, layer, x, grad), expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_dead_features_give_zeros_on_every_path(path, poison):
    layer = layer_of(path)
    dead = ~layer.alive
    x, grad = torch.randn(5, 24, device=on(path)), torch.randn(5, 16, device=on(path))
    clean = step(layer, layer, x, grad)
    with torch.no_grad():
        layer.weight[dead] = layer.bias[dead] = poison
    out, dx, *gradients = step(layer, layer, x, grad)
    assert (out[:, dead] == 0).all() and all((g[dead] == 0).all() for g in gradients)
    torch.testing.assert_close([out, dx, *gradients], clean)


@pytest.mark.parametrize("path", PATHS)
def test_autocast_computes_in_its_dtype_and_keeps_parameters_wide(path):
    layer = layer_of(path, activation="relu")
    x, grad = torch.randn(64, 24, device=on(path)), torch.randn(64, 16, device=on(path))

    def under_autocast(call):
        def run(x):
            with torch.autocast(on(path), dtype=torch.bfloat16):
                return call(x)

        return step(run, layer, x, grad)

    got, theirs = under_autocast(layer), under_autocast(lambda x: unfused(layer, x))
    assert got[0].dtype == torch.bfloat16 and all(g.dtype == torch.float32 for g in got[1:])
    exact = step(lambda x: unfused(layer.double(), x), layer.double(), x.double(), grad.double())
    for a, b, c in zip(got, theirs, exact, strict=True):
        assert_no_worse([a], [b.to(a.dtype)], [c])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("activation", [None, "relu"])
def test_compile_of_the_whole_graph_gives_the_same_gradients(path, activation):
    layer = layer_of(path, activation=activation)
    x, grad = torch.randn(6, 24, device=on(path)), torch.randn(6, 16, device=on(path))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for a, b in zip(step(compiled, layer, x, grad), step(layer, layer, x, grad), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("path", PATHS[:3])
def test_twice_is_refused(path):
    layer = layer_of(path)
    x = torch.randn(3, 24, device=on(path), requires_grad=True)
    (grad,) = torch.autograd.grad(layer(x).square().sum(), layer.theta, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("path", PATHS)
def test_the_result_does_not_change_from_run_to_run(path, nan_filled):
    layer = layer_of(path, 200, 40)
    x, grad = torch.randn(64, 200, device=on(path)), torch.randn(64, 40, device=on(path))
    first = step(layer, layer, x, grad)
    assert all(torch.equal(a, b) for a, b in zip(first, step(layer, layer, x, grad), strict=True))


@pytest.mark.parametrize("path", PATHS)
def test_functional_call_works(path):
    layer = layer_of(path)
    x = torch.randn(3, 24, device=on(path))
    doubled = {"theta": layer.theta.detach() * 2}
    torch.testing.assert_close(torch.func.functional_call(layer, doubled, (x,)), layer(x) * 2)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("strict", [False, True])
def test_export_sees_the_fold(path, strict):
    layer = layer_of(path)
    program = torch.export.export(layer, (torch.randn(2, 24, device=on(path)),), strict=strict)
    graphs = [m.graph for m in program.graph_module.modules() if isinstance(m, torch.fx.GraphModule)]
    assert [n.target for graph in graphs for n in graph.nodes].count(ops.fold.default) == 1


@pytest.mark.parametrize("path", PATHS)
def test_the_collector_collects_whatever_the_path(path, monkeypatch):
    model = torch.nn.Sequential(layer_of(path), torch.nn.Linear(16, 3, device=on(path)))
    x = torch.randn(4, 24, device=on(path))
    before = model(x)
    monkeypatch.setattr(dispatch, "FORCED", path)
    assert sn.GarbageCollector(model, (x,)).collect().removed
    assert len(model[0].theta) == 10
    torch.testing.assert_close(model(x), before)


def test_the_argument_beats_the_variable_which_beats_the_table(monkeypatch):
    sizes = ("cpu", dispatch.Layer(4096, 64, 10, torch.float32))
    assert dispatch.linear_path(*sizes) == "fold"
    monkeypatch.setattr(dispatch, "FORCED", "epilogue")
    assert dispatch.linear_path(*sizes) == "epilogue"
    assert dispatch.linear_path(*sizes, "reference") == "reference"


def test_bad_names_are_one_line(monkeypatch):
    layer, x = layer_of("fold"), torch.randn(2, 24)
    layer.path = "cudnn"
    with pytest.raises(sn.ShrinkError, match="path is 'cudnn', expected one of fold, epilogue, triton, reference$"):
        layer(x)
    layer.path = None
    monkeypatch.setattr(dispatch, "FORCED", "magic")
    with pytest.raises(sn.ShrinkError, match="SHRINKNETS_FAST_PATH is 'magic', expected one of"):
        layer(x)


def test_weights_or_outputs_decide_on_the_cpu():
    def path(rows, columns, features):
        return dispatch.linear_path("cpu", dispatch.Layer(rows, columns, features, torch.float32))

    assert path(256, 784, 10_000) == path(1, 784, 10_000) == path(32, 4096, 4096) == "epilogue"
    assert path(8192, 1024, 1024) == path(4096, 64, 10) == "fold"


def test_relu_behind_half_weights_is_never_folded():
    """Folding would round the weights again and flip signs, unlike under autocast, where they are rounded once."""
    for device, path in (("cpu", "epilogue"), ("cuda", "triton")):
        large = dispatch.Layer(8192, 4096, 4096, torch.bfloat16, flips=True)
        assert dispatch.linear_path(device, large) == path
        assert dispatch.linear_path(device, large._replace(flips=False)) == "fold"
    layer = layer_of(None, dtype=torch.bfloat16, activation="relu")
    x = torch.randn(100, 24, dtype=torch.bfloat16)
    assert type(layer(x).grad_fn).__name__ == "EpilogueBackward"
    layer.activation = None
    assert type(layer(x).grad_fn).__name__ != "EpilogueBackward"


def test_float64_and_devices_without_a_rule_take_the_fold():
    layer = dispatch.Layer(1, 2, 3, torch.float32)
    assert dispatch.linear_path("cuda", layer) == "triton"
    assert dispatch.linear_path("cuda", layer._replace(dtype=torch.float64)) == "fold"
    assert dispatch.linear_path("mps", layer) == "fold"


def test_info_prints_the_table(capsys):
    assert main(["info", "--dispatch"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in PATHS) and "SHRINKNETS_FAST_PATH" in text


def test_epilogue_sees_a_dead_row_that_is_not_finite():
    grad, weight, theta = torch.randn(3, 4), torch.randn(4, 5), torch.tensor([1.0, 0.0, -1.0, 2.0])
    grad[:, 1:3] = 0
    expected = (grad.double() @ weight.double()).float()
    weight[1] = float("inf")
    assert_close(ops.alive_product(grad, weight, theta), expected.double())
