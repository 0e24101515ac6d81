import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import shrinknets_fast as sn

LAYERS = {
    "linear": (lambda **k: sn.FilteredLinear(5, 7, **k), (3, 5), -1),
    "linear3d": (lambda **k: sn.FilteredLinear(5, 7, bias=False, **k), (2, 3, 5), -1),
    "conv1d": (lambda **k: sn.FilteredConv1d(3, 7, 3, padding=1, **k), (2, 3, 9), 1),
    "conv2d": (
        lambda **k: sn.FilteredConv2d(4, 6, 3, stride=2, groups=2, padding_mode="circular", padding=1, **k),
        (2, 4, 8, 7),
        1,
    ),
    "conv2d_reflect": (
        lambda **k: sn.FilteredConv2d(3, 7, 3, padding="same", padding_mode="reflect", dilation=2, **k),
        (2, 3, 8, 8),
        1,
    ),
    "conv3d": (lambda **k: sn.FilteredConv3d(2, 7, 2, bias=False, **k), (2, 2, 4, 4, 3), 1),
}
NORMS = {
    "bn1d": (lambda **k: sn.FilteredBatchNorm1d(7, **k), (4, 7)),
    "bn2d": (lambda **k: sn.FilteredBatchNorm2d(7, momentum=None, **k), (4, 7, 3, 3)),
    "bn3d": (lambda **k: sn.FilteredBatchNorm3d(7, affine=False, **k), (4, 7, 2, 2, 2)),
    "bn_sync": (lambda **k: sn.FilteredSyncBatchNorm(7, **k), (4, 7, 3)),
    "bn_no_stats": (lambda **k: sn.FilteredBatchNorm2d(7, track_running_stats=False, **k), (4, 7, 3, 3)),
}


def per_feature(theta, ndim, dim):
    shape = [1] * ndim
    shape[dim] = -1
    return theta.clamp(min=0).view(shape)


def plain_twin(layer):
    twin = copy.deepcopy(layer)
    twin.__class__ = layer.plain
    return twin


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("activation", [None, "relu"])
def test_layer_is_its_plain_twin_times_the_filter(name, activation):
    make, shape, dim = LAYERS[name]
    layer = make(activation=activation, dtype=torch.float64)
    with torch.no_grad():
        layer.theta[::3] = -0.5
    x = torch.randn(shape, dtype=torch.float64)
    expected = plain_twin(layer)(x)
    expected = expected * per_feature(layer.theta, expected.dim(), dim)
    torch.testing.assert_close(layer(x), F.relu(expected) if activation else expected)
    assert isinstance(layer, layer.plain)


@pytest.mark.parametrize("name", NORMS)
def test_batch_norm_is_its_plain_twin_times_the_filter(name):
    make, shape = NORMS[name]
    layer = make(dtype=torch.float64)
    with torch.no_grad():
        for p in layer.parameters():
            p.normal_()
        layer.theta.abs_()[::3] = -0.5
    twin = plain_twin(layer)
    for _ in range(3):
        x = torch.randn(shape, dtype=torch.float64)
        torch.testing.assert_close(layer(x), twin(x) * per_feature(layer.theta, len(shape), 1))
    for key, value in twin.state_dict().items():
        torch.testing.assert_close(layer.state_dict()[key], value)
    layer.eval(), twin.eval()
    torch.testing.assert_close(layer(x), twin(x) * per_feature(layer.theta, len(shape), 1))


@pytest.mark.parametrize("name", [*LAYERS, *NORMS])
def test_gradients_match_the_unfused_composition(name):
    make, shape, dim = (*NORMS[name], 1) if name in NORMS else LAYERS[name]
    layer = make(dtype=torch.float64)
    twin = plain_twin(layer)
    with torch.no_grad():
        layer.theta[1] = twin.theta[1] = -0.25
    x = torch.randn(shape, dtype=torch.float64)
    weight = torch.randn_like(layer(x))
    (layer(x) * weight).sum().backward()
    out = twin(x)
    (out * torch.relu(per_feature(twin.theta, out.dim(), dim)) * weight).sum().backward()
    for (key, p), q in zip(layer.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=key)
    assert layer.theta.grad[1] == 0


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_dead_feature_is_zero_whatever_its_weight_holds(name, poison):
    make, shape, dim = LAYERS[name]
    layer = make()
    with torch.no_grad():
        layer.theta[2] = 0.0
        layer.weight[2] = poison
        if layer.bias is not None:
            layer.bias[2] = poison
    x = torch.randn(shape, requires_grad=True)
    out = layer(x)
    assert (out.select(dim, 2) == 0).all() and out.isfinite().all()
    out.square().sum().backward()
    assert x.grad.isfinite().all()
    assert (layer._parameters["weight"].grad[2] == 0).all() and layer.theta.grad[2] == 0


def test_state_dict_holds_the_plain_names_and_theta():
    assert list(sn.FilteredLinear(3, 4).state_dict()) == ["weight", "bias", "theta"]
    assert list(sn.Filter(4).state_dict()) == ["theta"]
    names = list(sn.FilteredBatchNorm2d(4).state_dict())
    assert sorted(names) == sorted([*nn.BatchNorm2d(4).state_dict(), "theta"])


def test_repr_shows_alive_of_total():
    layer = sn.FilteredLinear(3, 4)
    with torch.no_grad():
        layer.theta[:3] = 0
    assert "alive=1/4" in repr(layer)
    assert "alive=2/2" in repr(sn.Filter(2))
    assert "alive=?" in repr(sn.FilteredLinear(3, 4, device="meta"))


def test_alive_counts_nan_as_alive():
    layer = sn.Filter(3)
    with torch.no_grad():
        layer.theta.copy_(torch.tensor([float("nan"), 0.0, -1.0]))
    assert layer.alive.tolist() == [True, False, False]


def test_init():
    torch.manual_seed(0)
    theta = sn.Filter(100_000).theta
    theta = theta.detach()
    assert 0 < float(theta.min()) < 1e-3 and float(theta.max()) == pytest.approx(1, abs=1e-3)
    assert float(theta.mean()) == pytest.approx(0.5, abs=0.01)
    assert (sn.Filter(100_000, dtype=torch.float16).theta > 0).all()
    assert (sn.FilteredConv2d(1, 4, 3, init=1.0).theta == 1).all()


def test_theta_is_shared_and_survives_deepcopy():
    theta = nn.Parameter(torch.ones(4))
    model = nn.Sequential(sn.FilteredLinear(3, 4, theta=theta), sn.FilteredLinear(4, 4, theta=theta))
    assert model[0].theta is theta and model[1].theta is theta
    assert len(list(model.parameters())) == 5
    twin = copy.deepcopy(model)
    assert twin[0].theta is twin[1].theta is not theta


def test_reset_parameters_draws_an_own_theta_anew():
    layer = sn.FilteredLinear(3, 64)
    before = layer.theta.detach().clone()
    layer.reset_parameters()
    assert not torch.equal(layer.theta, before)
    shared = nn.Parameter(torch.ones(4))
    sn.FilteredLinear(3, 4, theta=shared).reset_parameters()
    assert (shared == 1).all()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: sn.FilteredLinear(3, 4, theta=nn.Parameter(torch.ones(5))),
            ["FilteredLinear", "theta", "(5,)", "(4,)"],
        ),
        (lambda: sn.FilteredConv2d(3, 4, 3, theta=torch.ones(4)), ["FilteredConv2d", "theta", "Tensor"]),
        (lambda: sn.FilteredLinear(3, 4, activation="gelu"), ["activation", "'gelu'"]),
        (lambda: sn.FilteredBatchNorm1d(4, init=-1.0), ["FilteredBatchNorm1d", "init", "-1.0"]),
        (lambda: sn.Filter(4, init=float("nan")), ["init", "nan"]),
        (lambda: sn.Filter(4, init="normal"), ["init", "'normal'"]),
        (lambda: sn.Filter(0), ["num_features", "0"]),
    ],
)
def test_bad_arguments_are_named(make, words):
    with pytest.raises(sn.ShrinkError) as error:
        make()
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)


def saved_bytes(layer, x, parameters):
    """Bytes that autograd keeps for backward, each storage once, parameters not counted."""
    owned = {p.untyped_storage().data_ptr() for p in parameters}
    kept = {}

    def pack(t):
        if t.untyped_storage().data_ptr() not in owned:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = layer(x)
    del out
    return sum(kept.values())


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda a: sn.FilteredLinear(64, 48, activation=a), (32, 64)),
        (lambda a: sn.FilteredConv2d(8, 16, 3, activation=a), (4, 8, 12, 12)),
    ],
)
@pytest.mark.parametrize("activation", [None, "relu"])
def test_saves_no_more_for_backward_than_the_plain_layer_and_its_folded_weight(layer, shape, activation):
    layer = layer(activation)
    twin = plain_twin(layer)
    plain = nn.Sequential(twin, nn.ReLU()) if activation else twin
    x = torch.randn(shape, requires_grad=True)
    ours = saved_bytes(layer, x, layer.parameters())
    theirs = saved_bytes(plain, x, plain.parameters())
    folded = layer.weight.numel() * layer.weight.element_size()
    assert theirs > 0
    assert ours <= theirs + folded
    layer.path = "epilogue"
    output = 0 if activation else layer(x).nbytes  # what the filter was applied to
    assert saved_bytes(layer, x, layer.parameters()) == theirs + output


@pytest.mark.parametrize("kind", ["linear", "conv2d"])
def test_autocast_computes_in_its_dtype_and_keeps_parameters_wide(kind):
    make, shape, _ = LAYERS[kind]
    layer = make()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(torch.randn(shape))
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert {p.grad.dtype for p in layer.parameters()} == {torch.float32}


def test_functional_call_and_channels_last():
    layer = sn.FilteredConv2d(3, 4, 3, dtype=torch.float64)
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    doubled = {"theta": layer.theta.detach() * 2}
    torch.testing.assert_close(torch.func.functional_call(layer, doubled, (x,)), layer(x) * 2)
    layer = layer.to(memory_format=torch.channels_last)
    out = layer(x.contiguous(memory_format=torch.channels_last))
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_functional_twins_take_the_same_arguments():
    f = sn.functional
    linear, conv = sn.FilteredLinear(5, 7), sn.FilteredConv2d(3, 4, 3, stride=2, activation="relu")
    x, image = torch.randn(2, 5), torch.randn(2, 3, 9, 9)
    assert torch.equal(f.filtered_linear(x, *linear.parameters()), linear(x))
    got = f.filtered_conv2d(image, *conv.parameters(), stride=2, activation="relu")
    assert torch.equal(got, conv(image))
    for n, module in ((1, sn.FilteredConv1d(2, 3, 2)), (3, sn.FilteredConv3d(2, 3, 2))):
        data = torch.randn(2, 2, *[4] * n)
        assert torch.equal(getattr(f, f"filtered_conv{n}d")(data, *module.parameters()), module(data))
    with pytest.raises(sn.ShrinkError, match="'tanh'"):
        f.filtered_linear(x, *linear.parameters(), activation="tanh")
    norm = sn.FilteredBatchNorm1d(5)
    calls = (  # with what reading the attributes gives, the filter would be applied twice
        lambda: f.filtered_linear(x, linear.weight, None, linear.theta),
        lambda: f.filtered_linear(x, linear.weight.detach(), linear.bias, linear.theta),
        lambda: f.filtered_conv2d(image, conv.weight, conv.bias, conv.theta),
        lambda: f.filtered_batch_norm(x, None, None, norm.weight, norm.bias, norm.theta, training=True),
    )
    for call in calls:
        with pytest.raises(sn.ShrinkError, match="has its filter in it already"):
            call()


def test_gate_scales_a_whole_tensor_and_closes_it():
    gate, x = sn.Filter(1, init=0.5), torch.randn(3, 4, 5)
    assert torch.equal(gate(x), x * 0.5)
    with torch.no_grad():
        gate.theta.fill_(-1)
    assert (gate(torch.full((3, 4), float("nan"))) == 0).all()
