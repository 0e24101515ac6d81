import pickle
import subprocess
import sys
import warnings

import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.prune
from networks import conv_net, kill, mlp, relative
from torch import nn
from torch.nn.utils import parametrizations

import shrinknets_fast as sn

X = torch.randn(6, 1, 14, 14, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def trained():
    model = conv_net()
    for _ in range(3):
        model(torch.randn_like(X))
    kill(model)
    return model


def test_fold_filters_is_a_plain_and_smaller_copy_with_the_same_output():
    model = trained()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    model.eval()
    plain = sn.fold_filters(model, X)
    assert relative(plain(X), model(X)) < 1e-12
    assert all(type(m).__module__.startswith("torch") for m in plain.modules())
    assert plain[4][0].in_features == 8 * 16 and plain[4][0].out_features == 24
    assert not any("theta" in name for name in plain.state_dict())
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert model[4].out_features == 40 and not plain.training


def test_a_pickled_plain_model_needs_no_package(tmp_path):
    model = trained().eval()
    torch.save(sn.fold_filters(model, X), tmp_path / "plain.pt")
    torch.save((X, model(X).detach()), tmp_path / "data.pt")
    code = (
        "import sys; sys.modules['shrinknets_fast'] = None; import torch;"
        f"m = torch.load(r'{tmp_path / 'plain.pt'}', weights_only=False);"
        f"x, y = torch.load(r'{tmp_path / 'data.pt'}'); d = (m(x) - y).abs().max().item();"
        "assert d < 1e-10, d"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


class Keeps(nn.Module):
    """Keeps its last activation, and a list of parameters that it has under a name too."""

    def __init__(self):
        super().__init__()
        self.first, self.second = sn.FilteredLinear(6, 8), nn.Linear(8, 2)
        with sn.unfolded():
            self.regularised = [self.first.weight]

    def forward(self, x):
        self.last = self.first(x)
        return self.second(self.last)


def test_what_the_last_forward_left_in_the_model_is_no_obstacle():
    model, x = Keeps(), torch.randn(3, 6)
    kill(model)
    expected = model(x)
    plain = sn.fold_filters(model, (x,))
    torch.testing.assert_close(plain(x), expected)
    assert plain.first.weight.shape == (len(plain.first.bias), 6) and model.regularised[0] is next(model.parameters())


def test_example_inputs_are_known_from_a_collector_or_asked_for():
    model = trained()
    with pytest.raises(sn.ShrinkError, match="pass example_inputs"):
        sn.fold_filters(model)
    sn.GarbageCollector(model, X)
    assert sn.fold_filters(model)[4][0].out_features == 24
    untouched = mlp()  # nothing dead: nothing to trace
    x = torch.randn(3, 16, dtype=torch.float64)
    assert relative(sn.fold_filters(untouched)(x), untouched(x)) < 1e-13


@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_with_and_without_affine_parameters(affine):
    model = nn.Sequential(sn.FilteredBatchNorm1d(6, affine=affine), nn.Linear(6, 2)).double()
    x = torch.randn(9, 6, dtype=torch.float64)
    model(x)
    model.eval()
    plain = sn.fold_filters(model)
    assert type(plain[0]) is nn.BatchNorm1d and relative(plain(x), model(x)) < 1e-13


def test_a_gate_and_a_filter_along_another_dimension():
    model = nn.Sequential(nn.Conv1d(2, 5, 1), sn.Filter(7, dim=-1), sn.Filter(1)).double()
    x = torch.randn(3, 2, 7, dtype=torch.float64)
    plain = sn.fold_filters(model)
    assert relative(plain(x), model(x)) < 1e-13
    assert relative(pickle.loads(pickle.dumps(plain))(x), model(x)) < 1e-13


def test_the_root_may_be_a_filtered_layer():
    layer = sn.FilteredLinear(4, 3, activation="relu").double()
    x = torch.randn(5, 4, dtype=torch.float64)
    plain = sn.fold_filters(layer)
    assert type(plain) is nn.Sequential and torch.allclose(plain(x), layer(x))


def test_tied_weights_are_folded_apart():
    a, b = sn.FilteredLinear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    with sn.unfolded():
        b.weight = a.weight
    model = nn.Sequential(a, b).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    assert relative(sn.fold_filters(model)(x), model(x)) < 1e-13


def test_a_shared_layer_is_folded_once():
    layer = sn.FilteredLinear(4, 4, activation="relu").double()
    model = nn.Sequential(layer, nn.Sequential(layer))
    x = torch.randn(5, 4, dtype=torch.float64)
    plain = sn.fold_filters(model)
    assert plain[0] is plain[1][0] and torch.allclose(plain(x), model(x))


def test_no_subnormal_numbers_are_written():
    layer = sn.FilteredLinear(4, 3)
    with torch.no_grad():
        layer.theta.copy_(torch.tensor([1e-39, 1.0, 1e-38]))
    weight = sn.fold_filters(layer).weight
    assert not ((weight != 0) & (weight.abs() < torch.finfo(torch.float32).tiny)).any()
    assert (weight[0] == 0).all() and (weight[1] != 0).all()


@pytest.mark.parametrize(
    ("layers", "x", "removed"),
    [
        (lambda: [sn.FilteredLinear(4, 10), nn.Sigmoid(), nn.Linear(10, 3)], (5, 4), 4),
        (
            lambda: [sn.FilteredLinear(4, 10), nn.Softplus(), nn.Dropout(), nn.Tanh(), sn.FilteredLinear(10, 3)],
            (5, 4),
            4,
        ),
        (lambda: [sn.FilteredLinear(4, 10), nn.Sigmoid(), nn.Linear(10, 3, bias=False)], (5, 4), 0),
        (lambda: [sn.FilteredConv2d(1, 10, 3), nn.BatchNorm2d(10), nn.ReLU(), nn.Conv2d(10, 3, 3)], (5, 1, 8, 8), 4),
        (lambda: [sn.FilteredConv2d(1, 10, 3), nn.Sigmoid(), nn.Conv2d(10, 3, 3, padding=1)], (5, 1, 8, 8), 0),
        (
            lambda: [sn.FilteredConv2d(1, 10, 3), nn.Sigmoid(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(90, 3)],
            (5, 1, 8, 8),
            4,
        ),
        (lambda: [sn.FilteredLinear(4, 10), nn.Sigmoid(), nn.LayerNorm(10), nn.Linear(10, 3)], (5, 4), 0),
    ],
)
def test_constants_move_into_existing_biases_where_that_is_exact(layers, x, removed):
    model, x = nn.Sequential(*layers()).double(), torch.randn(x, dtype=torch.float64)
    for _ in range(3):
        model(x)
    with torch.no_grad():
        model[0].theta[[0, 2, 5, 9]] = 0
    assert sn.GarbageCollector(model, x).collect().removed == {}  # not while training
    model.eval()
    plain = sn.fold_filters(model, x)
    assert len(plain[0].weight) == 10 - removed
    assert relative(plain(x), model(x)) < 1e-12


class Half(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight * 0.5, self.bias)


class Twice(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight, self.bias * 2)


class Apart(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight) + self.bias


class Unused(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight)


class GatedLinear(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight, self.bias) * F.linear(x, self.weight + 1).sigmoid()


class Sign(nn.Module):
    def forward(self, x):
        return x.sign()


class Siamese(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(sn.FilteredLinear(10, 12), nn.Sigmoid(), nn.Linear(12, 4))

    def forward(self, x):
        return self.net(x) + self.net(x * 2)


class OneReader(nn.Module):
    """Of two constants."""

    def __init__(self):
        super().__init__()
        self.a, self.b = sn.FilteredLinear(10, 12), sn.FilteredLinear(10, 12)
        self.b.theta = self.a.theta
        self.reader = nn.Linear(12, 4)

    def forward(self, x):
        return self.reader(torch.sigmoid(self.a(x))) + self.reader(torch.cos(self.b(x)))


class OneBias(nn.Module):
    """Of two readers."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = sn.FilteredLinear(10, 12), nn.Linear(12, 4), nn.Linear(12, 4)
        self.c.bias = self.b.bias

    def forward(self, x):
        x = torch.sigmoid(self.a(x))
        return self.b(x) * 3 + self.c(x)


def between(*middle):
    return lambda: nn.Sequential(sn.FilteredLinear(10, 12), *(make() for make in middle))


@pytest.mark.parametrize(
    "make",
    [
        *(between(nn.Sigmoid, lambda kind=kind: kind(12, 4)) for kind in (Half, Twice, Apart, Unused, GatedLinear)),
        between(Sign, lambda: nn.Linear(12, 4)),
        between(lambda: nn.Hardtanh(0.5, 1), lambda: sn.FilteredLinear(12, 4)),
        Siamese,
        OneReader,
        OneBias,
    ],
)
def test_constants_never_move_where_they_do_not_belong(make):
    model, x = make().double().eval(), torch.randn(6, 10, dtype=torch.float64)
    for theta in sn.filters.thetas(model).values():
        theta.data.fill_(1.0)[:6] = 0
    assert relative(sn.fold_filters(model, (x,))(x), model(x)) < 1e-12


def test_pruning_has_to_be_settled_first():
    model = nn.Sequential(sn.FilteredLinear(4, 6), nn.Linear(6, 2))
    nn.utils.prune.l1_unstructured(model[0], "weight", 0.3)
    with pytest.raises(sn.ShrinkError, match="^fold_filters: 0 has a weight or bias that"):
        sn.fold_filters(model)


class Counting(nn.Module):
    """A parametrization that keeps count of how often it is read in training, and gives another weight each time."""

    def __init__(self):
        super().__init__()
        self.register_buffer("reads", torch.zeros((), dtype=torch.float64))

    def forward(self, weight):
        if self.training:
            self.reads += 1
        return weight * (1 + 0.1 * self.reads)


def counted(layer):
    torch.nn.utils.parametrize.register_parametrization(layer, "weight", Counting())
    return layer


PARAMETRIZED = {
    "spectral_norm": parametrizations.spectral_norm,
    "weight_norm": parametrizations.weight_norm,
    "orthogonal": parametrizations.orthogonal,
    "counting": counted,
    "old spectral_norm": torch.nn.utils.spectral_norm,
    "old weight_norm": torch.nn.utils.weight_norm,
}


def parametrized_net(make):
    torch.manual_seed(0)
    first, second, last = nn.Linear(6, 24), nn.Linear(24, 10), nn.Linear(10, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the old ones say that they are
        layers = [make(layer) for layer in (first, second, last)]
    model = nn.Sequential(layers[0], nn.ReLU(), sn.Filter(24), layers[1], nn.Sigmoid(), sn.Filter(10), layers[2])
    with torch.no_grad():  # statistics lag behind the weights, as in training
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model.double()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", PARAMETRIZED)
def test_parametrized_neighbours_are_not_read_with_effects(name, training):
    """No power iteration and no count: the fold, the trace and a collection leave what the next forward would read."""
    model = parametrized_net(PARAMETRIZED[name]).train(training)
    kill(model)
    x = torch.randn(4, 6, dtype=torch.float64)
    twin = parametrized_net(PARAMETRIZED[name]).train(training)  # no deepcopy: torch refuses it for the old weight_norm
    twin.load_state_dict(model.state_dict())
    expected = twin(x).detach()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    gc = sn.GarbageCollector(model, x)
    plain = sn.fold_filters(model)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert plain.training == training and relative(plain(x), expected) < 1e-12
    gc.collect()
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items() if v.shape == state[k].shape)
    assert relative(model(x), expected) < 1e-12
