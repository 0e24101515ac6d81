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


def test_another_size_than_the_config_s_is_refused_until_the_config_tells(tmp_path):
    plain = sn.fold_filters(shrunk())
    for model in (plain, copy.deepcopy(plain)):
        with pytest.raises(sn.ShrinkError, match=r"up.weight has shape \(7, 6\), its config makes \(12, 6\)"):
            model.save_pretrained(tmp_path)
        assert not list(tmp_path.iterdir())
    plain.config.width = 7
    plain.save_pretrained(tmp_path)
    assert torch.equal(opened(tmp_path)(X), plain(X))


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
