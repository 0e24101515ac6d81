"""What real training code does: several inputs and outputs, checkpointing, compiled models, other file formats."""

from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from networks import conv_net, kill, relative
from torch import nn
from torch.utils.checkpoint import checkpoint

import shrinknets_fast as sn


@dataclass
class Answer:
    logits: torch.Tensor
    extra: dict


class Pair(NamedTuple):
    main: torch.Tensor
    aux: torch.Tensor


class Many(nn.Module):
    """Two inputs, one by name; an auxiliary head in training mode only; the output in several shapes of container."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.image, self.number = nn.Linear(6, 12), nn.Linear(3, 12)
        self.middle, self.head, self.aux = nn.Linear(12, 10), nn.Linear(10, 4), nn.Linear(12, 4)

    def forward(self, image, *, number=None):
        hidden = torch.relu(self.image(image))
        if number is not None:
            hidden = hidden + torch.relu(self.number(number))
        main = self.head(torch.relu(self.middle(hidden)))
        aux = self.aux(hidden) if self.training else main
        return {
            "tuple": lambda: (main, aux),
            "dict": lambda: {"main": main, "nested": [aux, None, "text"]},
            "named": lambda: Pair(main, aux),
            "dataclass": lambda: Answer(main, {"aux": aux, "steps": 3}),
        }[self.kind]()


def leaves(output):
    return sn.graph.results.tensors_in(output)


@pytest.mark.parametrize("kind", ["tuple", "dict", "named", "dataclass"])
def test_several_inputs_and_outputs(kind):
    model = Many(kind).double()
    image, number = torch.randn(5, 6, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    before = [t.clone() for t in leaves(model(image, number=number))]
    sn.add_filters(model, image, example_kwargs={"number": number}, residual="tied")
    for old, new in zip(before, leaves(model(image, number=number)), strict=True):
        assert relative(new, old) < 1e-12
    assert type(model(image, number=number)) is type(Many(kind).double()(image))
    assert model.image.theta is model.number.theta and hasattr(model.middle, "theta")
    kill(model)
    expected = [[t.clone() for t in leaves(model.train(mode)(image, number=number))] for mode in (True, False)]
    optimizer = torch.optim.Adam(model.parameters())
    gc = sn.GarbageCollector(model, image, example_kwargs={"number": number}, optimizers=optimizer)
    assert gc.collect().removed == {"image": 4, "middle": 4}
    for mode, old in zip((True, False), expected, strict=True):
        for a, b in zip(leaves(model.train(mode)(image, number=number)), old, strict=True):
            assert relative(a, b) < 1e-12


def test_an_auxiliary_head_in_one_mode_only_is_respected():
    model = Many("tuple").double()
    image = torch.randn(5, 6, dtype=torch.float64)
    sn.add_filters(model, image)
    assert "aux" in sn.GarbageCollector(model, image).explain()


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = sn.FilteredLinear(6, 16, activation="relu"), sn.FilteredLinear(16, 16, activation="relu")
        self.head = nn.Linear(16, 2)

    def forward(self, x):
        x = checkpoint(self.a, x, use_reentrant=False)
        return self.head(checkpoint(self.b, x, use_reentrant=False))


def test_activation_checkpointing():
    model, x = Checkpointed().double(), torch.randn(4, 6, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    gc = sn.GarbageCollector(model, x, optimizers=optimizer)
    kill(model)
    before = model(x)
    assert gc.collect().removed == {"a": 6, "b": 6}
    assert relative(model(x), before) < 1e-13
    model(x).square().sum().backward()
    optimizer.step()


def test_safetensors_and_weights_only_hold_live_bytes(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch", reason="needs safetensors")
    x = torch.randn(4, 1, 14, 14, dtype=torch.float64)
    model = conv_net()
    kill(model)
    sn.GarbageCollector(model, x).collect()
    safetensors.save_file(model.state_dict(), tmp_path / "model.safetensors")
    live = sum(t.nbytes for t in model.state_dict().values())
    assert (tmp_path / "model.safetensors").stat().st_size < live + 4096
    fresh = conv_net()
    sn.load_state_dict(fresh, safetensors.load_file(tmp_path / "model.safetensors"))
    assert relative(fresh.eval()(x), model.eval()(x)) < 1e-14


def test_frozen_layers_stay_frozen_and_may_hold_no_optimizer_state():
    model = nn.Sequential(sn.FilteredLinear(6, 16), nn.ReLU(), nn.Linear(16, 2)).double()
    x = torch.randn(4, 6, dtype=torch.float64)
    model[0].requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad])
    gc = sn.GarbageCollector(model, x, optimizers=optimizer)
    kill(model)
    model(x).sum().backward()
    optimizer.step()
    assert gc.collect().removed == {"0": 6}
    assert not any(p.requires_grad for p in model[0].parameters()) and model[2].weight.requires_grad
    model(x).sum().backward()
    optimizer.step()


def test_a_compiled_model_shrinks_and_runs_on():
    model = nn.Sequential(sn.FilteredLinear(6, 16), nn.ReLU(), nn.Linear(16, 2)).double()
    compiled = torch.compile(model, backend="aot_eager")
    x = torch.randn(4, 6, dtype=torch.float64)
    gc = sn.GarbageCollector(compiled, x)
    compiled(x).sum().backward()
    kill(model)
    before = compiled(x).detach()
    assert gc.collect().removed == {"0": 6}
    assert relative(compiled(x), before) < 1e-13
    compiled(x).sum().backward()


def test_parameters_that_share_memory_without_being_one_are_refused():
    model = nn.Sequential(sn.FilteredLinear(6, 6, bias=False), nn.Linear(6, 6, bias=False), nn.Linear(6, 2)).double()
    model[1].weight = nn.Parameter(model[0].raw("weight").detach().t())
    gc = sn.GarbageCollector(model, torch.randn(4, 6, dtype=torch.float64))
    kill(model)
    with pytest.raises(sn.ShrinkError, match="shares its memory with"):
        gc.collect()
    assert model[0].out_features == 6


def test_a_batch_norm_with_a_cumulative_average():
    model = nn.Sequential(nn.Conv2d(1, 8, 3), sn.FilteredBatchNorm2d(8, momentum=None), nn.Conv2d(8, 2, 3)).double()
    x = torch.randn(4, 1, 8, 8, dtype=torch.float64)
    model(x)
    kill(model)
    before = model.eval()(x)
    assert sn.GarbageCollector(model, x).collect().removed == {"1": 3}
    assert relative(model(x), before) < 1e-13


def test_parameters_that_are_parts_of_one_flat_buffer_are_refused():
    """As some optimizers lay them out: none of the two begins where the memory does."""
    model = nn.Sequential(sn.FilteredLinear(6, 6, bias=False), nn.Linear(6, 2, bias=False)).double()
    flat = torch.randn(52, dtype=torch.float64)
    with sn.unfolded():
        model[0].weight, model[1].weight = (nn.Parameter(flat[4:40].view(6, 6)), nn.Parameter(flat[40:].view(2, 6)))
    gc = sn.GarbageCollector(model, torch.randn(4, 6, dtype=torch.float64))
    kill(model)
    with pytest.raises(sn.ShrinkError, match="shares its memory with"):
        gc.collect()
    assert model[0].out_features == 6
