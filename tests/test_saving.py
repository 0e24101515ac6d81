"""A checkpoint in another library's format is not written where nobody could open it."""

import copy
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

import shrinknets_fast as sn


class Config:
    def __init__(self, width):
        self.width = width


class Pretrained(nn.Module):
    """As Hugging Face's models do: made from a config, and saved with it."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.up, self.down = nn.Linear(6, config.width), nn.Linear(config.width, 3)

    def forward(self, x):
        return self.down(torch.relu(self.up(x)))

    def save_pretrained(self, folder):
        torch.save((self.config.width, self.state_dict()), folder / "model.pt")


X = torch.randn(2, 6)


def opened(folder):
    width, state = torch.load(folder / "model.pt")
    model = Pretrained(Config(width))
    model.load_state_dict(state)
    return model


def shrunk():
    model = sn.add_filters(Pretrained(Config(12)), X)
    with torch.no_grad():
        model.up.theta[:5] = 0
    sn.GarbageCollector(model, X).collect()
    return model


def test_a_plain_model_of_the_config_s_size_is_saved(tmp_path):
    plain = sn.fold_filters(sn.add_filters(Pretrained(Config(12)), X))
    plain.save_pretrained(tmp_path)
    assert torch.equal(opened(tmp_path)(X), plain(X))


def test_the_config_gets_the_size_that_is_left(tmp_path):
    plain = sn.fold_filters(shrunk())
    twin = copy.deepcopy(plain)
    for model in (plain, twin):
        model.save_pretrained(tmp_path)
        assert model.config.width == 7 and torch.equal(opened(tmp_path)(X), model(X))


class Deep(Pretrained):
    """width: of each layer, or of all; ``other`` is as large, and something else; scaled: a factor depends on it."""

    def __init__(self, config):
        nn.Module.__init__(self)
        self.config = config
        widths = config.width if isinstance(config.width, list) else [config.width] * config.layers
        pairs = [nn.ModuleList([nn.Linear(6, width), nn.Linear(width, 6)]) for width in widths]
        self.layers, self.up, self.down = nn.ModuleList(pairs), nn.Linear(6, config.other), nn.Linear(config.other, 3)
        self.factor = widths[0] ** 0.5 if config.scaled else 1.0

    def forward(self, x):
        for up, down in self.layers:
            x = x + self.factor * down(torch.relu(up(x)))
        return super().forward(x)


class DeepConfig(Config):
    def __init__(self, width=12, scaled=False):
        super().__init__(width)
        self.other, self.layers, self.scaled = 12, 2, scaled


class OneWidth(DeepConfig):
    """It can say one for all layers only."""

    def __setattr__(self, name, value):
        assert not isinstance(value, list)
        super().__setattr__(name, value)


def deep(config, first, second, last):
    model = sn.add_filters(Deep(config), X)
    with torch.no_grad():
        for layer, dead in ((model.layers[0][0], first), (model.layers[1][0], second), (model.up, last)):
            layer.theta[:dead] = 0
    sn.GarbageCollector(model, X).collect()
    return sn.fold_filters(model)


def test_each_field_gets_its_own_size(tmp_path):
    model = deep(DeepConfig(), 3, 3, 5)
    model.save_pretrained(tmp_path)
    assert (model.config.width, model.config.other) == (9, 7)


def test_layers_of_several_sizes_where_the_config_can_say_so(tmp_path):
    model = deep(DeepConfig(), 3, 4, 0)
    model.save_pretrained(tmp_path)
    assert (model.config.width, model.config.other) == ([9, 8], 12)
    listed = deep(DeepConfig([12, 12]), 3, 0, 2)
    listed.save_pretrained(tmp_path)
    assert (listed.config.width, listed.config.other) == ([9, 12], 10)


def test_what_no_config_says_is_refused_in_one_line(tmp_path):
    """Layers of several sizes; or the sizes fit, and the function is another."""
    said = r"layers.0.0.weight has shape \(9, 6\), its config makes \(12, 6\).*uniform="
    for model in (deep(OneWidth(), 3, 4, 0), deep(DeepConfig(scaled=True), 3, 3, 0)):
        with pytest.raises(sn.ShrinkError, match=said):
            model.save_pretrained(tmp_path)
        assert not list(tmp_path.iterdir()) and model.config.width == 12


def test_a_tensor_that_is_not_there_any_more_is_refused(tmp_path):
    model = sn.fold_filters(Deep(DeepConfig()), X)
    sn.saving.check_saves(model)
    model.down.register_parameter("bias", None)
    with pytest.raises(sn.ShrinkError, match=r"down.bias has shape no such tensor, its config makes \(3,\)"):
        model.save_pretrained(tmp_path)


def test_a_model_with_filters_says_how_to_open_it(tmp_path):
    with pytest.warns(UserWarning, match="from_pretrained drops the thetas.*shrinknets_fast.load_state_dict"):
        shrunk().save_pretrained(tmp_path)
    assert list(tmp_path.iterdir())


def test_copies_save_themselves():
    model = sn.add_filters(Pretrained(Config(12)), X)
    twin = copy.deepcopy(model)
    assert twin.save_pretrained.model is twin
    assert pickle.loads(pickle.dumps(model)).save_pretrained.__self__ is not model


def test_a_pickled_plain_model_needs_no_package(tmp_path):
    torch.save(sn.fold_filters(shrunk()), tmp_path / "plain.pt")
    code = (
        "import sys; sys.modules['shrinknets_fast'] = None; import pathlib, torch;"
        f"sys.path.insert(0, {str(__file__.rpartition('/')[0])!r});"
        "import types; sys.modules['pytest'] = types.SimpleNamespace(warns=0, raises=0);"
        f"m = torch.load({str(tmp_path / 'plain.pt')!r}, weights_only=False);"
        f"m.save_pretrained(pathlib.Path({str(tmp_path)!r}))"
    )
    code = code.replace(
        "import pathlib", "sys.modules['shrinknets_fast'] = types.ModuleType('shrinknets_fast'); import pathlib"
    )
    subprocess.run([sys.executable, "-c", "import types; " + code], check=True)
    assert (tmp_path / "model.pt").exists()


def test_models_of_other_kinds_are_left_alone():
    assert "save_pretrained" not in vars(sn.add_filters(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)), X))
