import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from closeness import assert_close, assert_no_worse
from conftest import INTERPRETED
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import shrinknets_fast as sn
from shrinknets_fast import dispatch
from shrinknets_fast.__main__ import main

PATHS = dispatch.PATHS
ops = torch.ops.shrinknets_fast


# with Triton's marked where it needs the GPU
MARKED = [p if p != "triton" or INTERPRETED else pytest.param(p, marks=pytest.mark.gpu) for p in PATHS]


def on(path):
    """The device on which a path is tested: Triton's kernels run on the CPU only where they are interpreted."""
    return "cuda" if path == "triton" and not INTERPRETED else "cpu"


@pytest.fixture(params=["linear", "conv"])
def kind(request):
    return request.param


def layer_of(path, kind="linear", columns=24, features=16, dtype=torch.float32, **options):
    options |= {"device": on(path), "dtype": dtype}
    if kind == "linear":
        layer = sn.FilteredLinear(columns, features, **options)
    else:
        layer = sn.FilteredConv2d(columns, features, (2, 3), padding=1, groups=2, stride=(2, 1), **options)
    layer.path = path
    with torch.no_grad():
        layer.theta[::3] = -0.5
    return layer


def batch_of(path, kind, rows, dtype=torch.float32, columns=24, features=16):
    """An input for ``layer_of`` and a gradient of its output."""
    sizes = ((rows, columns), (rows, features)) if kind == "linear" else ((rows, columns, 4, 5), (rows, features, 3, 5))
    return [torch.randn(size, device=on(path), dtype=dtype) for size in sizes]


def unfused(layer, x):
    weight, bias = layer.raw("weight"), layer.raw("bias")
    if isinstance(layer, nn.Linear):
        y = F.linear(x, weight, bias) * torch.relu(layer.theta)
    else:
        y = layer._conv_forward(x, weight, bias) * torch.relu(layer.theta)[:, None, None]
    return torch.relu(y) if layer.activation else y


def step(call, layer, x, grad):
    """Output and the gradients of x and of the parameters."""
    x = x.detach().requires_grad_()
    parameters = list(layer.parameters())
    out = call(x)
    return [out.detach(), *torch.autograd.grad(out, [x, *parameters], grad.to(out.dtype))]


@pytest.mark.parametrize("path", MARKED)
@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_path_is_worse_than_unfused(path, activation, dtype, kind):
    if path == "fold" and activation and dtype == torch.bfloat16:
        pytest.skip("signs flip: test_relu_behind_half_weights_is_never_folded")
    layer = layer_of(path, kind, dtype=dtype, activation=activation)
    wide = layer_of(path, kind, dtype=torch.float64, activation=activation)
    wide.load_state_dict(layer.state_dict())
    got, theirs, exact = [], [], []
    for _ in range(8):
        x, grad = batch_of(path, kind, 40 if kind == "linear" else 3, dtype)
        got.append(step(layer, layer, x, grad))
        theirs.append(step(lambda x: unfused(layer, x), layer, x, grad))
        exact.append(step(lambda x: unfused(wide, x), wide, x.double(), grad.double()))
    for results in zip(zip(*got, strict=True), zip(*theirs, strict=True), zip(*exact, strict=True), strict=True):
        assert_no_worse(*results)


def test_a_small_theta_costs_no_accuracy_in_half_precision(kind):
    """Outputs of 1e-5 have a few bits left in float16: theta's gradient may not come from them."""
    layer = layer_of("epilogue", kind, dtype=torch.float16, activation="relu")
    with torch.no_grad():
        layer.theta.clamp_(max=1e-5)
    wide = layer_of("epilogue", kind, dtype=torch.float64, activation="relu")
    wide.load_state_dict(layer.state_dict())
    x, grad = batch_of("epilogue", kind, 40 if kind == "linear" else 3, torch.float16)
    exact = step(lambda x: unfused(wide, x), wide, x.double(), grad.double())[-1]
    got, theirs = step(layer, layer, x, grad)[-1], step(lambda x: unfused(layer, x), layer, x, grad)[-1]
    assert_no_worse([got], [theirs], [exact])


@pytest.mark.parametrize("path", MARKED)
@pytest.mark.parametrize("make", [sn.FilteredConv1d, sn.FilteredConv2d, sn.FilteredConv3d])
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": 4, "padding": "same", "dilation": 1},
        {"kernel_size": 2, "padding": "same", "dilation": 3, "padding_mode": "replicate"},
        {"kernel_size": 2, "padding": "valid", "bias": False},
        {"kernel_size": 3, "padding": 2, "padding_mode": "circular", "groups": 2},
    ],
    ids=str,
)
def test_every_path_takes_every_window(path, make, options):
    layer = make(4, 6, activation="relu", device=on(path), **options)
    plain = layer.plain(4, 6, device=on(path), **options)
    plain.load_state_dict({k: v for k, v in layer.state_dict().items() if k != "theta"})
    layer.path = path
    dims = layer.weight.dim() - 2
    with torch.no_grad():
        layer.theta[::3] = -0.5
    for shape in ((2, 4, *(4, 5, 6)[:dims]), (4, *(4, 5, 6)[:dims])):
        x = torch.randn(shape, device=on(path))
        scale = torch.relu(layer.theta).detach().view(-1, *[1] * dims)
        torch.testing.assert_close(layer(x), torch.relu(plain(x) * scale), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("path", MARKED)
def test_same_padding_wants_stride_one(path):
    x, weight, theta = torch.randn(1, 2, 4, device=on(path)), torch.randn(3, 2, 3, device=on(path)), torch.ones(3)
    with pytest.raises((sn.ShrinkError, RuntimeError), match="'?same'? .*stride"):
        sn.functional.filtered_conv1d(x, weight, None, theta.to(on(path)), stride=2, padding="same", path=path)


@pytest.mark.parametrize("path", MARKED)
@pytest.mark.parametrize("shape", [(0, 24), (2, 3, 24), (24,)], ids=str)
def test_every_path_takes_any_batch(path, shape):
    layer = layer_of(path, activation="relu")
    x = torch.randn(shape, device=on(path))
    grad = torch.randn(*shape[:-1], 16, device=on(path))
    expected = step(lambda x: unfused(layer, x), layer, x, grad)
    for a, b in zip(step(layer, layer, x, grad), expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("path", MARKED)
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_dead_features_give_zeros_on_every_path(path, poison, kind):
    layer = layer_of(path, kind)
    dead = ~layer.alive
    x, grad = batch_of(path, kind, 5)
    clean = step(layer, layer, x, grad)
    with torch.no_grad(), sn.unfolded():
        layer.weight[dead] = layer.bias[dead] = poison
    out, dx, *gradients = step(layer, layer, x, grad)
    assert (out[:, dead] == 0).all() and all((g[dead] == 0).all() for g in gradients)
    torch.testing.assert_close([out, dx, *gradients], clean)


@pytest.mark.parametrize("path", MARKED)
def test_autocast_computes_in_its_dtype_and_keeps_parameters_wide(path, kind):
    """Signs near zero flip behind the weights' cast, with the fold's as often as without: many draws even that out."""
    layer = layer_of(path, kind, activation="relu")
    wide = layer_of(path, kind, activation="relu", dtype=torch.float64)
    wide.load_state_dict(layer.state_dict())
    results = []

    def under_autocast(call):
        def run(x):
            with torch.autocast(on(path), dtype=torch.bfloat16):
                return call(x)

        return run

    for _ in range(2 if path == "triton" else 16):  # which scales last, so no more signs flip; the interpreter is slow
        x, grad = batch_of(path, kind, 200 if kind == "linear" else 20)
        got = step(under_autocast(layer), layer, x, grad)
        theirs = step(under_autocast(lambda x: unfused(layer, x)), layer, x, grad)
        assert got[0].dtype == torch.bfloat16 and all(g.dtype == torch.float32 for g in got[1:])
        exact = step(lambda x: unfused(wide, x), wide, x.double(), grad.double())
        results.append([got, [b.to(a.dtype) for a, b in zip(got, theirs, strict=True)], exact])
    for drawn in zip(*(zip(*one, strict=True) for one in results), strict=True):
        assert_no_worse(*zip(*drawn, strict=True))


@pytest.mark.parametrize("path", MARKED)
@pytest.mark.parametrize("activation", [None, "relu"])
def test_compile_of_the_whole_graph_gives_the_same_gradients(path, activation, kind):
    layer = layer_of(path, kind, activation=activation)
    x, grad = batch_of(path, kind, 6)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for a, b in zip(step(compiled, layer, x, grad), step(layer, layer, x, grad), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("path", MARKED[:3])
@pytest.mark.parametrize("features", [16, 800])
@pytest.mark.parametrize("through", ["upstream", "saved"])
def test_twice_is_refused_or_right(path, kind, features, through):
    """Also where only what was saved depends on the parameters, as in a gradient penalty, whose upstream gradient is ones."""
    if path == "triton" and features > 16 and INTERPRETED:
        pytest.skip("needs a CUDA device: Triton's interpreter takes a minute, for what 16 features show")
    layer = layer_of(path, kind, features=features)
    x = batch_of(path, kind, 3)[0].requires_grad_()

    def penalised(call):
        y = call(x)
        first = y.square().sum() if through == "upstream" else y.sum()
        (grad,) = torch.autograd.grad(first, x, create_graph=True)
        return y.sum() + grad.square().sum()

    right = torch.autograd.grad(penalised(lambda x: unfused(layer, x)), list(layer.parameters()))
    for differentiate in (lambda loss: loss.backward(), lambda loss: torch.autograd.grad(loss, layer.theta)):
        layer.zero_grad()
        try:
            differentiate(penalised(layer))
        except RuntimeError as error:
            assert "once_differentiable" in str(error)  # noqa: PT017
        else:
            assert path == "fold" and torch.autograd.grad(penalised(layer), layer.theta)[0].allclose(
                right[-1], rtol=1e-3
            )


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("width", [20, 200])
def test_transforms_of_networks_of_any_width(width):
    model = nn.Sequential(sn.FilteredLinear(width, width, activation="relu"), sn.FilteredLinear(width, width))
    x = torch.randn(3, width)
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters, x):
        return torch.func.functional_call(model, parameters, (x,)).square().sum()

    samples = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    for name, gradient in torch.func.grad(loss)(parameters, x).items():
        torch.testing.assert_close(samples[name].sum(0), gradient)
    torch.testing.assert_close(
        torch.func.jacrev(model)(x[0]), torch.autograd.functional.jacobian(model, x[0], vectorize=True)
    )
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert copy.deepcopy(model)(torch.randn(3, width, requires_grad=True)).sum().backward() is None


def test_dead_rows_stay_out_of_gradients_through_vmap():
    layer = sn.FilteredLinear(200, 200)
    with torch.no_grad(), sn.unfolded():
        layer.theta[0], layer.weight[0], layer.bias[0] = -1, float("nan"), float("nan")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        grad = torch.func.grad(lambda x: torch.func.vmap(layer)(x).sum())(torch.randn(3, 4, 200))
    assert grad.isfinite().all()


def test_a_frozen_small_layer_keeps_no_input():
    layer, x = sn.FilteredLinear(8, 8).requires_grad_(False), torch.randn(3, 8, requires_grad=True)
    hidden = x * 2
    y = layer(hidden)
    hidden.add_(1)  # nobody needs it any more, as with a frozen nn.Linear
    y.sum().backward()
    assert x.grad is not None


def test_a_float64_parameter_is_not_given_to_triton():
    layer = dispatch.Layer(2, 4, 3, torch.float32)
    assert dispatch.path_of("linear", "cuda", layer) == "triton"
    assert dispatch.path_of("linear", "cuda", layer._replace(barred=True)) == "fold"
    assert dispatch.path_of("linear", "cuda", layer._replace(barred=True, flips=True)) == "fold"


@pytest.mark.parametrize("path", MARKED)
def test_the_result_does_not_change_from_run_to_run(path, kind, nan_filled):
    layer = layer_of(path, kind, 200, 40)
    x, grad = batch_of(path, kind, 64 if kind == "linear" else 2, columns=200, features=40)
    first = step(layer, layer, x, grad)
    assert all(torch.equal(a, b) for a, b in zip(first, step(layer, layer, x, grad), strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("path", [None, *MARKED])
@pytest.mark.parametrize("activation", [None, "relu"])
def test_a_cuda_graph_captures_both_passes(path, activation, kind):
    layer = layer_of(path, kind, activation=activation).cuda()
    x, grad = (t.cuda() for t in batch_of(path, kind, 5))
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):  # libraries and Triton set themselves up outside the capture
        for _ in range(3):
            step(layer, layer, x, grad)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # whatever waited for the device would raise here
        captured = step(layer, layer, x, grad)
    x.normal_()
    graph.replay()
    for a, b in zip(captured, step(layer, layer, x, grad), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("path", MARKED)
def test_functional_call_works(path, kind):
    layer = layer_of(path, kind)
    x, _ = batch_of(path, kind, 3)
    doubled = {"theta": layer.theta.detach() * 2}
    torch.testing.assert_close(torch.func.functional_call(layer, doubled, (x,)), layer(x) * 2)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("path", MARKED)
def test_vmap_gives_gradients_for_each_sample(path, kind):
    layer = layer_of(path, kind, activation="relu")
    x, _ = batch_of(path, kind, 3)
    parameters = {name: p.detach() for name, p in layer.named_parameters()}

    def loss(parameters, sample):
        return torch.func.functional_call(layer, parameters, (sample[None],)).square().sum()

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for sample, *gradients in zip(x, *found.values(), strict=True):
        for a, b in zip(gradients, torch.func.grad(loss)(parameters, sample).values(), strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("path", MARKED)
@pytest.mark.parametrize("strict", [False, True])
def test_export_sees_the_fold(path, strict, kind):
    layer = layer_of(path, kind)
    program = torch.export.export(layer, (batch_of(path, kind, 2)[0],), strict=strict)
    graphs = [m.graph for m in program.graph_module.modules() if isinstance(m, torch.fx.GraphModule)]
    assert [n.target for graph in graphs for n in graph.nodes].count(ops.fold.default) == 1


@pytest.mark.parametrize("path", MARKED)
def test_the_collector_collects_whatever_the_path(path, kind, monkeypatch):
    reader = nn.Linear(16, 3, device=on(path)) if kind == "linear" else nn.Conv2d(16, 3, 1, device=on(path))
    layer = layer_of(path, kind)
    if kind == "conv":  # of grouped channels only those at one place in each group could leave
        layer = sn.FilteredConv2d(24, 16, 3, theta=layer.theta, device=on(path))
    model = nn.Sequential(layer, reader)
    x, _ = batch_of(path, kind, 4)
    before = model(x)
    monkeypatch.setattr(dispatch, "FORCED", path)
    assert sn.GarbageCollector(model, (x,)).collect().removed
    assert len(model[0].theta) == 10
    torch.testing.assert_close(model(x), before)


def test_the_argument_beats_the_variable_which_beats_the_table(monkeypatch):
    sizes = ("linear", "cpu", dispatch.Layer(4096, 64, 10, torch.float32))
    assert dispatch.path_of(*sizes) == "fold"
    monkeypatch.setattr(dispatch, "FORCED", "epilogue")
    assert dispatch.path_of(*sizes) == "epilogue"
    assert dispatch.path_of(*sizes, "reference") == "reference"


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
        return dispatch.path_of("linear", "cpu", dispatch.Layer(rows, columns, features, torch.float32))

    assert path(256, 784, 10_000) == path(1, 784, 10_000) == path(32, 4096, 4096) == "epilogue"
    assert path(8192, 1024, 1024) == path(4096, 64, 10) == "fold"


def test_relu_behind_half_weights_is_never_folded():
    """Folding would round the weights again and flip signs, unlike under autocast, where they are rounded once."""
    for device, path in (("cpu", "epilogue"), ("cuda", "triton")):
        large = dispatch.Layer(8192, 4096, 4096, torch.bfloat16, flips=True)
        assert dispatch.path_of("linear", device, large) == path
        assert dispatch.path_of("linear", device, large._replace(flips=False)) == "fold"
    layer = layer_of(None, dtype=torch.bfloat16, activation="relu")
    x = torch.randn(100, 24, dtype=torch.bfloat16)
    assert type(layer(x).grad_fn).__name__ == "FilterBackward"
    layer.activation = None
    assert type(layer(x).grad_fn).__name__ != "FilterBackward"


def test_small_images_before_many_channels_are_not_folded_on_the_cpu():
    small, large = sn.FilteredConv2d(64, 64, 3, padding=1), sn.FilteredConv2d(3, 8, 3)
    for layer, x, name in (
        (small, (1, 64, 7, 7), "FilterBackward"),
        (large, (2, 3, 32, 32), "ConvolutionBackward0"),
    ):
        assert type(layer(torch.randn(x)).grad_fn).__name__ == name


def test_float64_and_devices_without_a_rule_take_the_fold():
    layer = dispatch.Layer(1, 2, 3, torch.float32)
    assert dispatch.path_of("linear", "cuda", layer) == "triton"
    assert dispatch.path_of("linear", "cuda", layer._replace(dtype=torch.float64)) == "fold"
    assert dispatch.path_of("linear", "mps", layer) == "fold"


def test_info_prints_the_table(capsys):
    assert main(["info", "--dispatch"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in PATHS) and "SHRINKNETS_FAST_PATH" in text


def test_bad_names_are_one_line_in_convolutions():
    x, weight, theta = torch.randn(1, 2, 4), torch.randn(3, 2, 3), torch.ones(3)
    with pytest.raises(sn.ShrinkError, match="filtered_conv: path is 'cudnn', expected one of"):
        sn.functional.filtered_conv1d(x, weight, None, theta, path="cudnn")
    with pytest.raises(sn.ShrinkError, match="filtered_conv1d: padding is 'some', expected numbers, 'same' or 'valid'"):
        sn.functional.filtered_conv1d(x, weight, None, theta, padding="some", path="epilogue")


def test_epilogue_sees_a_dead_row_that_is_not_finite():
    grad, weight, theta = torch.randn(3, 4), torch.randn(4, 5), torch.tensor([1.0, 0.0, -1.0, 2.0])
    grad[:, 1:3] = 0
    expected = (grad.double() @ weight.double()).float()
    weight[1] = float("inf")
    assert_close(ops.alive_product(grad, weight, theta), expected.double())


def test_triton_is_no_default_where_it_would_truncate():
    def chosen(dtype):
        barred = dispatch.truncates("cuda", dtype)
        return dispatch.path_of("linear", "cuda", dispatch.Layer(16, 64, 64, dtype, barred=barred), None)

    assert chosen(torch.float32) == "triton"
    torch.set_float32_matmul_precision("high")
    try:
        assert chosen(torch.float32) == "fold" and chosen(torch.bfloat16) == "triton"
    finally:
        torch.set_float32_matmul_precision("highest")
