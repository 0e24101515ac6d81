"""The trial of a plan on a copy without memory: on meta tensors where they do, else on fake ones."""

import copy
import random
import threading
import types
import warnings

import numpy
import pytest
import torch
from networks import conv_net, kill, mlp, relative
from torch import nn

import shrinknets_fast as sn
from shrinknets_fast.graph.rehearse import Fake, Meta


class ByDevice(nn.Module):
    """On a CPU its width is written into the forward, elsewhere it is not."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = sn.FilteredConv2d(1, 8, 3), nn.Linear(800, 4)

    def forward(self, x):
        y = self.conv(x)
        return self.fc(y.view(-1, 800) if x.device.type == "cpu" else y.flatten(1))


class OwnTensor(nn.Module):
    """Holds tensors that are neither parameters nor buffers: one for its forward, one that its forward left."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = sn.FilteredConv2d(1, 8, 3), nn.Conv2d(8, 2, 1)
        self.mask = torch.ones(10, 10)

    def forward(self, x):
        self.last = [self.conv(x) * self.mask]
        return self.fc(self.last[0])


class Random(nn.Module):
    """A random number of its own, from the CPU's generator."""

    def __init__(self):
        super().__init__()
        self.first, self.second = sn.FilteredLinear(6, 8), nn.Linear(8, 2)

    def forward(self, x):
        y = self.first(x)
        return self.second(y * torch.rand(()) if self.training else y)


@pytest.mark.parametrize(
    ("make", "shape", "stage"),
    [
        (mlp, (2, 16), Meta),
        (conv_net, (2, 1, 14, 14), Meta),
        (Random, (2, 6), Meta),
        (OwnTensor, (2, 1, 12, 12), Fake),
    ],
)
def test_the_stage_and_what_is_collected_on_it(make, shape, stage):
    model = make().double().eval()
    if make is OwnTensor:
        model.mask = model.mask.double()
    x = torch.randn(shape, dtype=torch.float64)
    gc = sn.GarbageCollector(model, x)
    kill(model)
    before = model(x)
    assert gc.collect().removed
    assert type(gc._reading.rehearsal.stage) is stage
    torch.testing.assert_close(model(x), before)


def test_a_forward_that_asks_for_the_device_is_tried_on_that_device():
    model = ByDevice()
    gc = sn.GarbageCollector(model, torch.randn(2, 1, 12, 12))
    kill(model)
    with pytest.warns(UserWarning, match=r"ByDevice cannot run at conv=5.*view\(-1, 800\)"):
        gc.collect()
    assert type(gc._reading.rehearsal.stage) is Fake and model.conv.out_channels == 8


def test_a_trial_takes_no_random_numbers():
    model = Random().train()
    before = torch.get_rng_state()
    gc = sn.GarbageCollector(model, torch.zeros(2, 6))
    with torch.no_grad():
        model.first.theta[:3] = 0
    assert gc.collect().removed
    assert torch.equal(torch.get_rng_state(), before)


class Uncopied(nn.Linear):
    def __deepcopy__(self, memo):
        raise TypeError("one of a kind")


def test_a_model_that_cannot_be_copied_is_refused_at_once():
    model = nn.Sequential(sn.FilteredLinear(4, 4), Uncopied(4, 4))
    with pytest.raises(sn.ShrinkError, match="Sequential cannot be copied: one of a kind"):
        sn.GarbageCollector(model, torch.randn(2, 4))


def test_what_a_model_holds_beside_modules_is_no_obstacle():
    model, x = mlp(), torch.randn(2, 16, dtype=torch.float64)
    model.lock, model.numbers = threading.Lock(), (i for i in range(3))
    optimizer = torch.optim.Adam(model.parameters())
    model.gc = sn.GarbageCollector(model, x, optimizers=optimizer)  # as a LightningModule has it
    kill(model)
    before = model(x)
    assert model.gc.collect().removed
    assert relative(model(x), before) < 1e-13


class Remembers(nn.Module):
    """Keeps what its first forward made, in a buffer, an attribute and an object."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 2)
        self.register_buffer("place", None)
        self.box = types.SimpleNamespace()

    def forward(self, x):
        if self.place is None:
            self.place = torch.arange(2, dtype=x.dtype)
            self.scale = torch.full((2,), 0.5)
            self.box.shift = torch.ones(2)
        return self.second(self.first(x).relu()) * self.scale + self.place + self.box.shift


def test_what_a_forward_keeps_is_not_the_traces():
    torch.manual_seed(0)
    model, x = Remembers(), torch.randn(3, 6)
    expected = copy.deepcopy(model)(x)
    sn.add_filters(model, x)
    gc = sn.GarbageCollector(model, x)
    assert model.place is None and not vars(model.box)
    output = model(x)
    assert type(output) is torch.Tensor and torch.equal(output, expected)
    with torch.no_grad():
        model.first.theta[:3] = 0
    before = model(x)
    assert gc.collect().removed == {"first": 3}
    torch.testing.assert_close(model(x), before)


def counted(self, y):
    self.count += 1
    return y * min(1.0, self.count / 100)


def layer_drop(self, y):
    return y * 2 if self.training and random.random() < 0.5 else y.abs()


CHANGES = {
    "dropout": (lambda self, y: self.dropout(y), lambda self: setattr(self.dropout, "p", 0.2)),
    "temperature": (lambda self, y: y / self.count, lambda self: setattr(self, "count", 0.9)),
    "warm-up": (counted, lambda self: None),
    "random": (layer_drop, lambda self: random.seed(3)),
    "numpy": (lambda self, y: y * float(numpy.random.rand()), lambda self: None),
    "one call more": (lambda self, y: y if self.count == 1 else y.relu(), lambda self: setattr(self, "count", 2)),
}


class Changes(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.first, self.dropout, self.second = sn.FilteredLinear(6, 8), nn.Dropout(0.1), nn.Linear(8, 2)
        self.count, self.extra = 1, forward

    def forward(self, x):
        return self.second(self.extra(self, self.first(x)))


@pytest.mark.parametrize("name", CHANGES)
def test_a_forward_that_is_not_what_it_was_is_tried_as_it_is(name):
    forward, change = CHANGES[name]
    model, x = Changes(forward), torch.randn(4, 6)
    gc = sn.GarbageCollector(model, x)
    for died in (2, 4):
        model(x)
        change(model)
        with torch.no_grad():
            model.first.theta[:2] = 0
        assert gc.step().removed == {"first": 2}
        assert model.first.out_features == 8 - died


def test_trials_draw_none_of_the_users_random_numbers():
    model, x = Changes(layer_drop), torch.randn(4, 6)
    states = lambda: (random.getstate(), str(numpy.random.get_state()), torch.get_rng_state().tolist())  # noqa: E731
    before = states()
    gc = sn.GarbageCollector(model, x)
    with torch.no_grad():
        model.first.theta[:2] = 0
    gc.collect()
    assert states() == before


def test_filtered_layers_run_on_meta_tensors():
    x = torch.empty(2, 3, 8, 8, device="meta")
    model = nn.Sequential(
        sn.FilteredConv2d(3, 5, 3, activation="relu"),
        sn.FilteredBatchNorm2d(5),
        nn.Flatten(),
        sn.FilteredLinear(180, 7),
    ).to("meta")
    out = model(x)
    out.sum().backward()
    assert out.shape == (2, 7) and all(p.grad.shape == p.shape for p in model.parameters())


class ByKeyword(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.norm = nn.InstanceNorm1d(channels)

    def forward(self, x):
        return self.norm(input=x)


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("norm", [nn.InstanceNorm1d, ByKeyword])
def test_an_instance_norm_without_tensors_follows_what_it_is_given(norm, batched):
    model = nn.Sequential(sn.FilteredConv1d(2, 8, 3), norm(8), nn.Conv1d(8, 4, 1))
    x = torch.randn(3, 2, 9) if batched else torch.randn(2, 9)
    twin = copy.deepcopy(model)
    gc = sn.GarbageCollector(model, x, follow=twin)
    with torch.no_grad():
        for m in (model, twin):
            m[0].theta[:3] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns where it is given another number of channels
        assert gc.collect().removed == {"0": 3}
        assert model(x).shape == twin(x).shape
    norms = [m for copied in (model, twin) for m in copied.modules() if isinstance(m, nn.InstanceNorm1d)]
    assert [m.num_features for m in norms] == [5, 5]
