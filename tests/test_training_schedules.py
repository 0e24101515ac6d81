"""Schedulers, parametrized layers and adapters in training runs that lose features: see test_training_runs.py."""

import inspect
import warnings

import pytest
import torch
from test_training_runs import Run, assert_the_same, kill, losses
from torch import nn
from torch.optim import lr_scheduler

import shrinknets_fast as sn

pytestmark = pytest.mark.filterwarnings("ignore:no rule for")

SCHEDULERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda k: 0.9**k),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda k: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 4]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, 3),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.1, total_iters=6),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.8),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=4), lr_scheduler.ExponentialLR(o, 0.8)], [4]
    ),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 9),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 5),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.5, 3), lr_scheduler.ExponentialLR(o, 0.8)]
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 1e-3, 1e-2, step_size_up=3),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 1e-2, total_steps=20),
    "SWALR": lambda o: torch.optim.swa_utils.SWALR(o, 1e-3, anneal_epochs=4),
}


def test_no_scheduler_of_torch_is_left_out():
    kinds = [v for v in vars(lr_scheduler).values() if inspect.isclass(v) and issubclass(v, lr_scheduler.LRScheduler)]
    public = {kind.__name__ for kind in kinds} & set(lr_scheduler.__all__)
    assert public - {"LRScheduler"} <= set(SCHEDULERS)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_goes_on(name):
    class Scheduled(Run):
        def made_optimizers(self):
            optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-2, momentum=0.9)
            self.scheduler = SCHEDULERS[name](optimizer)
            return [optimizer]

        def step(self, k):
            loss = super().step(k)
            self.scheduler.step(*[loss.item()] * (name == "ReduceLROnPlateau"))
            return loss

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The epoch parameter")  # torch's own SequentialLR
        assert_the_same(Scheduled)


PARAMETRIZED = {
    "reader by weight_norm": ("last", nn.utils.parametrizations.weight_norm),
    "maker by weight_norm": ("conv", nn.utils.parametrizations.weight_norm),
    "reader by spectral_norm": ("last", nn.utils.parametrizations.spectral_norm),
    "maker by spectral_norm": ("conv", nn.utils.parametrizations.spectral_norm),
}


@pytest.mark.parametrize("name", PARAMETRIZED)
def test_a_parametrized_layer_shrinks_exactly_or_keeps_its_features_with_a_reason(name):
    layer, parametrize = PARAMETRIZED[name]

    class Parametrized(Run):
        shrinks = ()

        def __init__(self):
            super().__init__(adapt=self.adapted)

        @staticmethod
        def adapted(model):
            parametrize(getattr(model, layer))
            return model

    assert_the_same(Parametrized)
    run = Parametrized()
    hub = "hidden" if layer == "last" else "norm"
    kill(run.model, 3)
    if run.gc.plan().removed.get(hub) != 3:
        reasons = {planned.name: planned.blocked for planned in run.gc.plan().hubs}
        assert reasons[hub] and "\n" not in reasons[hub]


def test_adapters_follow_the_features_of_their_layer():
    """peft's A loses the columns that the layer loses, B the rows; the filter stands behind their sum."""
    peft = pytest.importorskip("peft", reason="needs peft")

    class Adapted(Run):
        shrinks = ("base_model.model.norm",)

        def __init__(self):
            super().__init__(adapt=self.adapted)

        @staticmethod
        def adapted(model):
            hidden = nn.Sequential(nn.Linear(48, 16), sn.Filter(16, init=0.8)).double()
            model.hidden = hidden
            config = peft.LoraConfig(r=2, target_modules=["hidden.0", "last"], init_lora_weights=False)
            return peft.get_peft_model(model, config).double()

    assert_the_same(Adapted)
    _, run = losses(Adapted, True)
    layers = dict(run.model.named_modules())
    hidden, last = layers["base_model.model.hidden.0"], layers["base_model.model.last"]
    assert hidden.lora_B["default"].weight.shape == (10, 2) and hidden.lora_A["default"].weight.shape == (2, 24)
    assert last.lora_A["default"].weight.shape == (2, 10) and last.base_layer.in_features == 10
