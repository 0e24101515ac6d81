"""Training that goes on from a checkpoint is the training that was never interrupted, bit for bit."""

import io

import pytest
import torch
from networks import conv_net
from safetensors.torch import load as safetensors_load
from safetensors.torch import save as safetensors_save
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import shrinknets_fast as sn

STEPS = 50
RANDOM = torch.Generator().manual_seed(0)
X = torch.randn(256, 12, dtype=torch.float64, generator=RANDOM)
Y = (X @ torch.randn(12, 4, dtype=torch.float64, generator=RANDOM)).argmax(1)
IMAGES = torch.randn(64, 1, 14, 14, dtype=torch.float64, generator=RANDOM)

OPTIMIZERS = {
    "sgd": lambda groups: torch.optim.SGD(groups, momentum=0.9, nesterov=True),
    "adam": lambda groups: torch.optim.Adam(groups, amsgrad=True),
    "adam_fused": lambda groups: torch.optim.Adam(groups, fused=True),
    "adamw": torch.optim.AdamW,
    "rmsprop": lambda groups: torch.optim.RMSprop(groups, momentum=0.5, centered=True),
    "adagrad": torch.optim.Adagrad,
    "adadelta": torch.optim.Adadelta,
    "rprop": torch.optim.Rprop,
}
# whose states are tensors shaped like the parameter, as those of the others
ALIKE = ("adamw", "adagrad", "adadelta", "rprop")
RATES = {"sgd": 3e-2, "adagrad": 6e-2, "adadelta": 1.0}


def perceptron():
    torch.manual_seed(0)
    layers = [sn.FilteredLinear(12, 40), nn.ReLU(), nn.Dropout(0.1), nn.Linear(40, 30), nn.BatchNorm1d(30)]
    return nn.Sequential(*layers, sn.Filter(30), nn.ReLU(), nn.Linear(30, 4)).double()


class Run:
    """Model, optimizer, collector, and whatever else has a state."""

    def __init__(self, make=perceptron, x=X, kind="adam", proximal=False, average=False, state=None, **options):
        self.x, self.model = x, make()
        if state is not None:
            sn.load_state_dict(self.model, state["model"])
        rate = RATES.get(kind, 1e-2)
        self.optimizer = OPTIMIZERS[kind](sn.param_groups(self.model, lr=rate, filter_lr=3 * rate))
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 4 * STEPS)
        parts = {"optimizer": self.optimizer, "schedule": self.schedule}
        if proximal:
            parts["proximal"] = sn.ProximalL1(self.optimizer, self.model, 3e-2)
        if average:
            average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
            parts["average"], options = average, {**options, "follow": average, "follow_dead": "drop"}
        self.gc = parts["gc"] = sn.GarbageCollector(self.model, x[:4], optimizers=self.optimizer, **options)
        self.parts, self.order = parts, torch.Generator().manual_seed(1)
        self.lam = 0 if proximal else 3e-2
        self.found = []  # (loss, what was removed) of each step
        if state is not None:
            for name, part in parts.items():
                part.load_state_dict(state[name])
            self.order.set_state(state["order"])
            torch.set_rng_state(state["random"])

    def train(self, steps):
        for _ in range(steps):
            rows = torch.randint(len(self.x), (32,), generator=self.order)
            loss = nn.functional.cross_entropy(self.model(self.x[rows]), Y[rows])
            self.optimizer.zero_grad()
            (loss + self.lam * sn.penalty(self.model)).backward()
            self.optimizer.step()
            self.schedule.step()
            collection = self.gc.step()
            if "average" in self.parts:
                self.parts["average"].update_parameters(self.model)
            self.found.append((loss.item(), collection and collection.removed))
        return self

    def state_dict(self):
        self.gc.trim(waste=0)
        states = {name: part.state_dict() for name, part in self.parts.items()}
        states |= {"model": self.model.state_dict(), "order": self.order.get_state(), "random": torch.get_rng_state()}
        torch.save(states, file := io.BytesIO())
        return torch.load(io.BytesIO(file.getvalue()), weights_only=True)


def assert_same(one, other, where=""):
    """Bit for bit, dtypes and strides included."""
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and one.shape == other.shape and one.stride() == other.stride(), where
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}[{key!r}]")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for i, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{where}[{i}]")
    else:
        assert one == other, where


def check_resumes(points, **options):
    """Stop at each of ``points``, go on in a fresh model, and compare with the run that nothing has stopped."""
    whole, states = Run(**options), []
    for _ in range(STEPS):
        states.append(whole.state_dict())  # those before step 0, 1, ...
        whole.train(1)
    expected = whole.state_dict()
    for point in points([step for step, (_, removed) in enumerate(whole.found) if removed]):
        second = Run(**options, state=states[point]).train(STEPS - point)
        assert_same(second.found, whole.found[point:], f"stopped at {point}")
        assert_same(second.state_dict(), expected, f"stopped at {point}")


def around_the_middle(collections):
    """Right behind a collection; others come before and after."""
    assert len(collections) >= 3, f"collections at {collections}: too few to stand between two"
    return [collections[len(collections) // 2] + 1]


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] if kind in ALIKE else []) for kind in OPTIMIZERS]
)
def test_a_stop_between_two_collections_changes_no_bit(kind):
    check_resumes(around_the_middle, kind=kind)


def test_nadam_in_float32(monkeypatch):
    """In float64 torch itself makes its float32 ``mu_product`` a float64 when it loads a state."""
    monkeypatch.setitem(OPTIMIZERS, "nadam", torch.optim.NAdam)
    check_resumes(around_the_middle, kind="nadam", make=lambda: perceptron().float(), x=X.float())


@pytest.mark.parametrize(
    "options",
    [
        {"proximal": True},
        {"average": True},
        {"removal": 0.5, "seed": 3},
        {"every": 7},
        {"align": 4, "min_dead": 0.1},
    ],
    ids=str,
)
def test_the_rest_of_the_state_is_kept_too(options):
    check_resumes(around_the_middle, **options)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["dense", "last"])
def test_convolutions(memory_format):
    check_resumes(around_the_middle, make=lambda: conv_net().to(memory_format=memory_format), x=IMAGES)


def test_what_a_checkpoint_does_to_the_run_that_writes_it():
    """Nothing: it trims, so tensors move, and that is all."""
    run = Run()
    for _ in range(STEPS):
        run.train(1).state_dict()
    assert_same(run.state_dict(), Run().train(STEPS).state_dict())


def test_safetensors_hold_the_models_state():
    """Its tensors are dense and own their memory, which that format asks for."""
    run = Run(make=conv_net, x=IMAGES).train(STEPS // 2)
    run.gc.trim(waste=0)
    state = safetensors_load(safetensors_save(run.model.state_dict()))
    fresh = conv_net()
    sn.load_state_dict(fresh, state)
    assert_same(fresh.state_dict(), run.model.state_dict())
    assert fresh[0].out_channels < 8


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sgd", "adam", "adam_fused"])
def test_a_stop_at_any_step_changes_no_bit(kind):
    check_resumes(lambda collections: range(1, STEPS), kind=kind)
