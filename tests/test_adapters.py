"""Adapters of peft are merged into the layer's function, or refused."""

import pytest
import torch
from networks import kill, relative
from situations import EXACT
from torch import nn

import shrinknets_fast as sn


class Adapted(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.fc1, self.fc2 = sn.FilteredLinear(12, 8, activation=activation), nn.Linear(8, 4)

    def forward(self, x):
        return self.fc2(self.fc1(x))


ADAPTERS = {
    "lora": ("LoraConfig", {"r": 4, "init_lora_weights": False}),
    "rslora": ("LoraConfig", {"r": 4, "init_lora_weights": False, "use_rslora": True, "bias": "all"}),
    "dora": ("LoraConfig", {"r": 4, "init_lora_weights": False, "use_dora": True}),
    "adalora": ("AdaLoraConfig", {"init_r": 4, "total_step": 10, "init_lora_weights": False}),
    "ia3": ("IA3Config", {"feedforward_modules": [], "init_ia3_weights": False}),
    "oft": ("OFTConfig", {"r": 0, "oft_block_size": 4, "init_weights": False}),
    "boft": ("BOFTConfig", {"boft_block_size": 4, "init_weights": False}),
    "loha": ("LoHaConfig", {"r": 4, "init_weights": False}),
    "lokr": ("LoKrConfig", {"r": 4, "init_weights": False}),
    "vera": ("VeraConfig", {"r": 4, "init_weights": False}),
    "hra": ("HRAConfig", {"r": 4, "init_weights": False}),
}
LORAS = {"lora", "rslora", "dora", "adalora"}  # the others assign weights once they are merged
SCALES_ONLY = {"ia3", "oft", "boft", "hra"}  # their zeros stay zeros


def adapted(name, dead=False, activation=None):
    peft = pytest.importorskip("peft")
    kind, options = ADAPTERS[name]
    model = Adapted(activation).double()
    if dead:
        kill(model)
    config = getattr(peft, kind)(target_modules=["fc1"], **options)
    return peft.get_peft_model(model, config).double().eval(), torch.randn(8, 12, dtype=torch.float64)


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_merges_into_the_function(name):
    model, x = adapted(name)
    before = model(x).detach()
    model.merge_adapter()
    assert relative(model(x).detach(), before) < EXACT
    model.unmerge_adapter()
    assert relative(model(x).detach(), before) < 1e-6
    if name in LORAS:
        assert relative(model.merge_and_unload()(x).detach(), before) < 1e-6
    else:  # layer.weight = layer.weight
        with pytest.raises(TypeError, match="cannot assign"):
            model.merge_and_unload()


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_of_a_dead_feature_is_refused_unless_it_only_scales(name):
    model, x = adapted(name, dead=True)
    before = model(x).detach()
    if name in SCALES_ONLY:
        model.merge_adapter()
        assert relative(model(x).detach(), before) < EXACT
        return
    with pytest.raises(sn.ShrinkError, match="is written to, but has theta -0.1"):
        model.merge_adapter()
    assert torch.equal(model(x), before)


@pytest.mark.parametrize("name", ["lora", "loha", "lokr"])
def test_an_adapter_of_a_layer_with_an_activation_does_not_merge(name):
    """It is added behind the activation, and would be merged in front of it."""
    model, x = adapted(name, activation="relu")
    before = model(x).detach()
    with pytest.raises(sn.ShrinkError, match="knows nothing of the layer's activation"):
        model.merge_adapter()
    assert torch.equal(model(x), before)


def test_features_of_an_adapted_layer_leave_where_the_adapter_lets_them():
    model, x = adapted("lora", dead=True)
    before = model(x).detach()
    assert not sn.GarbageCollector(model.base_model.model, x).collect().removed  # the adapter's output is alive
    assert relative(model(x).detach(), before) < EXACT
