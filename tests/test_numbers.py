"""Widths that a forward turns into numbers and into decisions: what depends on one stays or is refused."""

import numpy as np
import pytest
import torch
from networks import outputs, relative
from torch import nn

import shrinknets_fast as sn

MADE = {
    "tensor": lambda x, d: torch.sqrt(torch.tensor(d, dtype=x.dtype)),
    "as_tensor": lambda x, d: torch.as_tensor(d**-0.5),
    "new_tensor": lambda x, d: x.new_tensor(d),
    "full": lambda x, d: torch.full((), d, dtype=x.dtype),
    "new_full": lambda x, d: x.new_full((), d),
    "ones": lambda x, d: torch.ones(d, dtype=x.dtype).sum(),
    "arange": lambda x, d: torch.arange(1, d + 1, dtype=x.dtype).mean(),
    "eye": lambda x, d: torch.eye(d, dtype=x.dtype).trace(),
    "linspace": lambda x, d: torch.linspace(0, 1, d, dtype=x.dtype)[1],
    "new_zeros": lambda x, d: x.new_zeros(d).add(1).sum(),
    "Tensor": lambda x, d: torch.sqrt(torch.DoubleTensor([d])),
    "from_numpy": lambda x, d: torch.from_numpy(np.sqrt([d])),
    "asarray": lambda x, d: torch.asarray(d**0.5),
    "scalar_tensor": lambda x, d: torch.scalar_tensor(d, dtype=x.dtype),
    "full_like": lambda x, d: torch.full_like(x[:, :1], d),
    "fill_": lambda x, d: torch.empty_like(x[:, :1]).fill_(d),
    "hann_window": lambda x, d: torch.hann_window(d, dtype=x.dtype).sum(),
    "bool": lambda x, d: x[:, :1].detach() * 0 + 1 + x.new_ones(1) * (d > 6),
}
DECIDED = {
    "if": lambda x, d: x.relu() if d >= 8 else x,
    "else": lambda x, d: x if d >= 8 else x.relu(),
    "loop": lambda x, d: sum([x * 1.01 for _ in range(d)]),
    "gelu": lambda x, d: nn.functional.gelu(x, approximate="tanh" if d > 6 else "none"),
}
# of another tensor, whose size does not change
BESIDE = {
    "pad": lambda y, d: nn.functional.pad(y, (0, d)).mean(-1, keepdim=True),
    "roll": lambda y, d: y.roll(d, -1),
    "select": lambda y, d: y[..., d % 3, None],
    "step": lambda y, d: y[..., :: max(1, d // 4)].sum(-1, keepdim=True),
    "topk": lambda y, d: y.topk(1 + d // 8, -1)[0].sum(-1, keepdim=True),
}


class Uses(nn.Module):
    """Between a filtered layer and its reader stands ``use(x, its width)``."""

    def __init__(self, use):
        super().__init__()
        self.first, self.second, self.use = sn.FilteredLinear(6, 8, init=1.0), nn.Linear(8, 3), use

    def forward(self, x):
        x = self.first(x)
        return self.second(self.use(x, x.size(-1)))


@pytest.mark.parametrize(
    "use",
    [
        *(pytest.param(lambda x, d, make=make: x / make(x, d), id=name) for name, make in MADE.items()),
        *(pytest.param(use, id=name) for name, use in DECIDED.items()),
        *(
            pytest.param(lambda x, d, use=use: x * use(x.new_tensor([[1.0, 2.0, 4.0]]).expand(5, 3), d)[:, :1], id=name)
            for name, use in BESIDE.items()
        ),
    ],
)
def test_what_follows_a_width_never_changes_unseen(use):
    model, x = Uses(use).double(), torch.randn(5, 6, dtype=torch.float64)
    gc = sn.GarbageCollector(model, x)
    with torch.no_grad():
        model.first.theta[:3] = 0
    before = outputs(model, x)
    try:
        gc.collect()
    except sn.ShrinkError as error:
        assert "\n" not in str(error) and "Uses cannot run at first=5" in str(error)
        assert model.first.out_features == 8
    for old, new in zip(before, outputs(model, x), strict=True):
        assert relative(new, old) < 1e-13


def test_numbers_that_do_not_follow_a_width_are_no_obstacle():
    model = Uses(lambda x, d: x * torch.tensor(0.5, dtype=x.dtype) + x * torch.ones((), dtype=x.dtype)).double()
    gc = sn.GarbageCollector(model, torch.randn(5, 6, dtype=torch.float64))
    with torch.no_grad():
        model.first.theta[:3] = 0
    assert gc.collect().removed == {"first": 3}


class FitsLater(nn.Module):
    """A shortcut that fits only once the second layer has shrunk."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), sn.FilteredLinear(8, 12, init=1.0)
        self.third = nn.Linear(12, 3)

    def forward(self, x):
        x = torch.relu(self.first(x))
        y = self.second(x)
        return self.third(y + x if y.shape == x.shape else y)


def test_a_hub_at_which_a_decision_on_shapes_would_change_stays_with_its_line():
    model, x = FitsLater().double(), torch.randn(5, 6, dtype=torch.float64)
    gc = sn.GarbageCollector(model, x)
    with torch.no_grad():
        model.second.theta[:4] = 0
    with pytest.warns(UserWarning, match=r"add is called where it was not.*y \+ x if y\.shape == x\.shape"):
        gc.collect()
    assert model.second.out_features == 12


class Chosen(nn.Module):
    """torch.cond, which the refusal of data-dependent control flow recommends."""

    def __init__(self):
        super().__init__()
        self.first, self.second = sn.FilteredLinear(6, 8, init=1.0), nn.Linear(8, 3)

    def forward(self, x):
        x = self.first(x)
        return self.second(torch.cond(x.sum() > 0, lambda x: x.sin(), lambda x: x.neg(), (x,)))


@pytest.mark.filterwarnings("ignore:no rule for")
def test_a_model_with_cond_can_be_collected():
    model, x = Chosen().double(), torch.randn(5, 6, dtype=torch.float64)
    gc = sn.GarbageCollector(model, x)
    with torch.no_grad():
        model.first.theta[:3] = 0
    try:
        before = outputs(model, x)
    except torch._dynamo.exc.Unsupported:
        pytest.skip("needs a torch.cond that runs without being compiled")
    gc.collect()
    for old, new in zip(before, outputs(model, x), strict=True):
        assert relative(new, old) < 1e-13
