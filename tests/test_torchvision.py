"""torchvision's classifiers, one of each family: filters, random deaths, a collection, the same outputs.

Run with ``-s`` for a table: features removed, parameters before and after, largest difference, what is kept and why.
"""

import re
import warnings
from collections import Counter

import pytest
import torch
from networks import kill
from torch import nn
from torch.utils import _pytree as pytree

import shrinknets_fast as sn
from shrinknets_fast.graph.verdict import judge

models = pytest.importorskip("torchvision.models")
pytestmark = pytest.mark.slow

# name -> (image size, arguments)
FAMILIES = {
    "resnet18": (64, {}),
    "resnext50_32x4d": (64, {}),
    "wide_resnet50_2": (64, {}),
    "vgg11_bn": (32, {}),
    "alexnet": (64, {}),
    "squeezenet1_1": (64, {}),
    "densenet121": (64, {}),
    "mobilenet_v2": (64, {}),
    "mobilenet_v3_small": (64, {}),
    "efficientnet_b0": (64, {}),
    "efficientnet_v2_s": (64, {}),
    "mnasnet0_5": (64, {}),
    "shufflenet_v2_x0_5": (64, {}),
    "regnet_y_400mf": (64, {}),
    "inception_v3": (299, {"init_weights": False}),
    "googlenet": (64, {"init_weights": False}),
    "convnext_tiny": (64, {}),
    "swin_t": (64, {}),
    "swin_v2_t": (64, {}),
    "vit_b_32": (64, {"image_size": 64}),
    "maxvit_t": (224, {}),
}


def without_randomness(model):
    """Random numbers along a shrunk axis differ, whatever is removed."""
    for module in model.modules():
        if isinstance(module, nn.Dropout) or type(module).__name__ == "StochasticDepth":
            module.p = 0.0
    return model


def outputs(model, x):
    """All output tensors in train and in eval mode; the model is left as it was."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    found = []
    for training in (True, False):
        model.train(training)
        with torch.no_grad():
            found.append([t for t in pytree.tree_leaves(as_tuple(model(x))) if isinstance(t, torch.Tensor)])
            for name, value in model.state_dict().items():
                value.copy_(state[name])
    return found


def as_tuple(output):
    return tuple(output) if isinstance(output, tuple) else output


def difference(after, before):
    pairs = [(a, b) for x, y in zip(after, before, strict=True) for a, b in zip(x, y, strict=True)]
    return max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-30)) for a, b in pairs)


def spread_out(model):
    """Generic batch-norm parameters and statistics: with ones and zeros, mistakes would cancel."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase):
                for tensor, low in (
                    (module.weight, 0.5),
                    (module.bias, -0.5),
                    (module.running_mean, -0.5),
                    (module.running_var, 0.5),
                ):
                    tensor.copy_(low + torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype))


def kept(gc):
    """{short reason: features} of what could not leave even if every filter were dead."""
    everything = {key: torch.ones_like(mask) for key, mask in gc._dead().items()}
    verdict = judge(gc._network, everything, idle_too=False)
    reasons = Counter()
    for hub in gc._hubs:
        for feature in hub.ids[~verdict.removable[hub.ids]].tolist():
            index = int(verdict.blame[feature])
            reasons[
                re.sub(r"[\w.]+ \((\w+)\)", r"\1", verdict.reasons[index]) if index >= 0 else "nothing reads it"
            ] += 1
    return reasons


@pytest.mark.parametrize("name", FAMILIES)
def test_family(name):
    size, arguments = FAMILIES[name]
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = without_randomness(getattr(models, name)(num_classes=10, **arguments)).double()
    spread_out(model)
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    plain = outputs(model, x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # an op without a rule
        sn.add_filters(model, x)
        assert difference(outputs(model, x), plain) <= 1e-12
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
        gc = sn.GarbageCollector(model, x, optimizers=optimizer)
    kill(model, 0.35)
    before = outputs(model, x)
    parameters = sum(p.numel() for p in model.parameters())
    collection = gc.collect()
    worst = difference(outputs(model, x), before)
    left = sum(p.numel() for p in model.parameters())
    why = "; ".join(f"{count} {reason}" for reason, count in kept(gc).most_common(4))
    print(f"\n{name} | {sum(collection.removed.values())} | {parameters} | {left} | {worst:.1e} | {why}")
    assert worst <= 1e-10
    assert collection.removed
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}
    loss = sum(t.square().mean() for t in pytree.tree_leaves(as_tuple(model.train()(x))) if isinstance(t, torch.Tensor))
    loss.backward()
    optimizer.step()
    gc.step()
    assert all(bool(p.isfinite().all()) for p in model.parameters())
