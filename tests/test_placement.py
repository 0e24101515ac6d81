import copy

import pytest
import torch
from networks import kill, outputs, relative
from torch import nn

import shrinknets_fast as sn


def filters(model):
    return {name: type(module).__name__ for name, module in sn.filters.named_filters(model).items()}


def add(model, x, **options):
    """add_filters, checking that outputs, batch-norm statistics, parameters and modules stay what they were."""
    model = model.double()
    before = outputs(model, x)
    state = copy.deepcopy(model.state_dict())
    parameters = {id(p) for p in model.parameters()}
    assert sn.add_filters(model, x, **options) is model
    for old, new in zip(before, outputs(model, x), strict=True):
        assert relative(new, old) < 1e-12
    kept = [v for k, v in model.state_dict().items() if not k.endswith("theta")]
    assert all(torch.equal(a, b) for a, b in zip(kept, state.values(), strict=True))
    assert parameters <= {id(p) for p in model.parameters()}
    return model


def shrink(model, x):
    kill(model)
    before = outputs(model, x)
    collection = sn.GarbageCollector(model, x).collect()
    for old, new in zip(before, outputs(model, x), strict=True):
        assert relative(new, old) < 1e-12
    return collection.removed


def data(*shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_dense_layers_are_filtered_and_the_output_is_not():
    model = add(nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 10), nn.Tanh(), nn.Linear(10, 3)), data(4, 6))
    assert filters(model) == {"0": "FilteredLinear", "2": "FilteredLinear"}
    assert shrink(model, data(4, 6)) == {"0": 8, "2": 4}


def test_after_a_batch_norm_never_before():
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 3),
    )
    model = add(model, data(4, 1, 6, 6))
    assert filters(model) == {"1": "FilteredBatchNorm2d"}
    assert shrink(model, data(4, 1, 6, 6)) == {"1": 3}
    assert model[0].out_channels == 5


@pytest.mark.parametrize("activation", [nn.Sigmoid, nn.Softplus, nn.Hardsigmoid])
def test_behind_an_activation_that_does_not_keep_zero(activation):
    model = add(nn.Sequential(nn.Linear(6, 20), activation(), nn.Dropout(0.0), nn.Linear(20, 3)), data(4, 6))
    assert filters(model) == {"1.1": "Filter"}
    assert shrink(model, data(4, 6)) == {"1.1": 8}


@pytest.mark.parametrize("activation", [nn.GELU, nn.SiLU, nn.ELU, nn.Tanh, nn.LeakyReLU, nn.Hardswish])
def test_before_an_activation_that_keeps_zero(activation):
    model = add(nn.Sequential(nn.Linear(6, 20), activation(), nn.Linear(20, 3)), data(4, 6))
    assert filters(model) == {"0": "FilteredLinear"}


def test_not_where_a_mixing_reader_blocks_it():
    model = add(
        nn.Sequential(nn.Linear(6, 20), nn.Softmax(-1), nn.Linear(20, 9), nn.LogSoftmax(-1), nn.Linear(9, 3)),
        data(4, 6),
    )
    assert filters(model) == {}


def test_exclude_covers_what_is_inside():
    def model():
        return nn.Sequential(nn.Sequential(nn.Linear(6, 20), nn.ReLU()), nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 3))

    assert filters(add(model(), data(4, 6), exclude=["0"])) == {"1": "FilteredLinear"}
    assert filters(add(model(), data(4, 6), exclude=["0.0", "1"])) == {}
    with pytest.raises(sn.ShrinkError, match="exclude names 'nope'"):
        sn.add_filters(model(), torch.randn(4, 6), exclude=["nope"])


def test_a_layer_called_twice_gets_no_filter_of_its_own():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.b(torch.relu(self.a(torch.relu(self.a(x)))))

    assert filters(add(Twice(), data(4, 6))) == {}


def test_hooks_and_references_to_modules_stay_valid():
    linear = nn.Linear(6, 20)
    model = nn.Sequential(linear, nn.ReLU(), nn.Linear(20, 3)).double()
    seen = []
    linear.register_forward_hook(lambda m, a, o: seen.append(type(m).__name__))
    sn.add_filters(model, data(4, 6))
    seen.clear()
    model(data(4, 6))
    assert seen == ["FilteredLinear"] and model[0] is linear


def test_a_model_that_has_filters_already_keeps_them():
    model = add(
        nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 3)),
        data(4, 6),
        exclude=["2"],
    )
    theta = model[0].theta
    sn.add_filters(model, data(4, 6))
    assert filters(model) == {"0": "FilteredLinear", "2": "FilteredLinear"} and model[0].theta is theta


def test_init_sets_theta_and_bad_options_are_named():
    def model():
        return nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 3))

    assert (sn.add_filters(model(), torch.randn(4, 6), init=0.5)[0].theta == 0.5).all()
    uniform = sn.add_filters(model(), torch.randn(4, 6), init="uniform")[0].theta
    assert 0 < float(uniform.min().detach()) < float(uniform.max().detach()) <= 1
    for bad in ({"init": 0}, {"residual": "other"}):
        ((name, value),) = bad.items()
        broken = model()
        with pytest.raises(sn.ShrinkError, match=f"{name} is {value!r}"):
            sn.add_filters(broken, torch.randn(4, 6), **bad)
        assert type(broken[0]) is nn.Linear


def test_inside_the_branches_of_a_residual_network():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(4, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
            self.conv2, self.bn2 = nn.Conv2d(12, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)

        def forward(self, x):
            return torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))

    model = nn.Sequential(nn.Conv2d(1, 4, 3), Block(), Block(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    model = add(model, data(3, 1, 6, 6))
    assert filters(model) == {"1.bn1": "FilteredBatchNorm2d", "2.bn1": "FilteredBatchNorm2d"}
    assert shrink(model, data(3, 1, 6, 6)) == {"1.bn1": 4, "2.bn1": 4}


@pytest.mark.parametrize("layers", [0, 2])
def test_a_transformer_encoder_keeps_its_filters_in_evaluation(layers):
    """Its fused op takes the plain weights: without a gradient another network would run than the one that is trained."""
    layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
    model = (nn.TransformerEncoder(layer, layers) if layers else layer).double().eval()
    x = torch.randn(3, 7, 16, dtype=torch.float64)
    sn.add_filters(model, x)
    for theta in sn.filters.thetas(model).values():
        theta.data[::2] = 0
    expected = model(x)
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected)
        masked = torch.zeros(3, 7, dtype=torch.bool)
        masked[0, 5:] = True
        got = model(x, src_key_padding_mask=masked)[~masked]
    torch.testing.assert_close(got, model(x, src_key_padding_mask=masked)[~masked])
    assert sum(sn.GarbageCollector(model, x).collect().removed.values()) == 16 * max(layers, 1)
    torch.testing.assert_close(model(x), expected)


def test_wrappers_for_several_devices_are_refused():
    model = nn.DataParallel(nn.Linear(3, 4))
    with pytest.raises(sn.ShrinkError, match=r"model is a DataParallel, expected the module inside it: model\.module"):
        sn.add_filters(model, torch.randn(2, 3))


def test_the_users_hooks_see_the_users_data_only():
    seen = []
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sigmoid(), nn.Softmax2d(), nn.Conv2d(8, 2, 1))
    model[1].register_forward_hook(lambda module, args, output: seen.append(output.shape))
    sn.add_filters(model, torch.randn(2, 3, 8, 8))
    assert set(seen) == {(2, 8, 6, 6)}


def test_complex_layers_get_no_filter():
    model = nn.Sequential(nn.Linear(6, 8, dtype=torch.cfloat), nn.Linear(8, 3, dtype=torch.cfloat))
    sn.add_filters(model, torch.randn(2, 6, dtype=torch.cfloat))
    assert type(model[0]) is nn.Linear


def test_sizes_that_depend_on_values_are_refused_in_one_line():
    class Routed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x):
            return x.new_zeros(len(x), 3).index_add(
                0, rows := (x[:, 0] > 0).nonzero()[:, 0], self.second(self.first(x[rows]))
            )

    with pytest.raises(sn.ShrinkError, match="a size that depends on values") as error:
        sn.add_filters(Routed(), torch.randn(5, 6))
    assert "\n" not in str(error.value)
