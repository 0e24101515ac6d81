"""Pointwise ops: zeros pass where f(0) is 0, axes meet by broadcasting."""

import pytest
import torch
import torch.nn.functional as F
from rule_cases import image_case, leaves, row_case, stays
from torch import nn

ZERO = {
    "relu": nn.ReLU(),
    "relu_": nn.ReLU(inplace=True),
    "relu6": nn.ReLU6(),
    "silu": nn.SiLU(),
    "silu_": nn.SiLU(inplace=True),
    "gelu": nn.GELU(),
    "gelu tanh": nn.GELU("tanh"),
    "hardtanh": nn.Hardtanh(),
    "leaky_relu": nn.LeakyReLU(),
    "leaky_relu_": nn.LeakyReLU(inplace=True),
    "elu": nn.ELU(),
    "elu_": nn.ELU(inplace=True),
    "celu": nn.CELU(),
    "selu": nn.SELU(inplace=True),
    "mish": nn.Mish(),
    "mish_": nn.Mish(inplace=True),
    "hardswish": nn.Hardswish(),
    "hardswish_": nn.Hardswish(inplace=True),
    "softsign": nn.Softsign(),
    "tanhshrink": nn.Tanhshrink(),
    "hardshrink": nn.Hardshrink(),
    "softshrink": nn.Softshrink(),
    "tanh": nn.Tanh(),
    "threshold": nn.Threshold(0.1, 0.0),
    "prelu": nn.PReLU(),
    "prelu per channel": nn.PReLU(8),
    "dropout": nn.Dropout(0.0),
    "dropout2d": nn.Dropout2d(0.0),
    "alpha_dropout": nn.AlphaDropout(0.0),
    "abs": torch.abs,
    "square": torch.square,
    "power": lambda x: x**3,
    "clamp": lambda x: x.clamp(-1, 1),
    "clamp_": lambda x: x.clone().clamp_(max=1.0),
    "scaled": lambda x: 2.5 * x / 3,
    "expm1": torch.expm1,
    "where": lambda x: torch.where(x > 0.3, x, 0.0),
    "masked_fill": lambda x: x.masked_fill(x > 0.3, 0.0),
    "maximum of two": lambda x: torch.maximum(x, x * 0.3),
    "lerp": lambda x: torch.lerp(x, x * 2, 0.3),
    "addcmul": lambda x: torch.addcmul(x, x, x),
    "detached": lambda x: x + x.detach().clone(),
    "cast": lambda x: x.float().double(),
    "out of place sum": lambda x: x + x.sin(),
    "mul_": lambda x: x.clone().mul_(3).sub_(x),
}


@pytest.mark.parametrize("name", ZERO)
def test_zero_stays_zero(name):
    leaves(image_case(ZERO[name]))


NOT_ZERO = {
    "sigmoid": nn.Sigmoid(),
    "softplus": nn.Softplus(),
    "hardsigmoid": nn.Hardsigmoid(),
    "log_sigmoid": nn.LogSigmoid(),
    "exp": torch.exp,
    "cos": torch.cos,
    "plus one": lambda x: x + 1,
    "one minus": lambda x: 1 - x,
    "to the zero": lambda x: x**0,
    "drawn": lambda x: x + torch.bernoulli(x.detach(), 1.0),
    "hardtanh above zero": nn.Hardtanh(0.1, 1.0),
    "threshold": nn.Threshold(0.1, 0.5),
    "clamp": lambda x: x.clamp(min=0.2),
    "comparison": lambda x: (x >= 0).double(),
    "masked_fill": lambda x: x.masked_fill(x < 0.3, -1.0),
    "add_": lambda x: x.clone().add_(1),
}


@pytest.mark.parametrize("name", NOT_ZERO)
def test_not_zero(name):
    stays(image_case(NOT_ZERO[name]), r"is not zero where reader \(linear\) reads it")


class Scaled(nn.Module):
    def __init__(self, *shape, add=False):
        super().__init__()
        self.scale = nn.Parameter(torch.rand(shape) + 0.5)
        self.add = add

    def forward(self, x):
        return x + self.scale if self.add else x * self.scale


@pytest.mark.parametrize("shape", [(8, 1, 1), (1, 8, 1, 1), (1,), (), (6,), (8, 6, 6)])
def test_parameter_multiplied(shape):
    model, x = image_case(Scaled(*shape))
    leaves((model, x))
    if 8 in shape:
        assert 4 in model.middle.scale.shape


def test_parameter_added():
    stays(image_case(Scaled(8, 1, 1, add=True)), "is not zero where reader")


def test_number_that_is_the_width():
    stays(
        row_case(lambda x: x * 8**-0.5 if x.shape[-1] == 8 else x * x.shape[-1] ** -0.5),
        "one feature less: aten.mul.Tensor is called with other numbers",
    )


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Conv2d(8, 3, 1), nn.Conv2d(3, 8, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))


def test_squeeze_and_excitation():
    model, x = image_case(Gate())
    leaves((model, x))
    assert model.middle.up.weight.shape[0] == 4 and model.middle.down.weight.shape[1] == 4


class OneMap(nn.Module):
    """(B, 1, H, W) times (B, C, H, W)."""

    def __init__(self):
        super().__init__()
        self.map = nn.Conv2d(8, 1, 1)

    def forward(self, x):
        return x * self.map(x).sigmoid()


def test_one_map_for_all_channels():
    leaves(image_case(OneMap()))


def test_alpha_dropout_in_training_is_not_zero():
    case = image_case(nn.AlphaDropout(0.5))
    case[0].middle.p = 0.5
    torch.manual_seed(1)
    import shrinknets_fast as sn

    with torch.no_grad():
        case[0].first.theta[[1, 2]] = 0
    assert not sn.GarbageCollector(*case).plan()


@pytest.mark.parametrize("factor", [float("inf"), -float("inf"), float("nan")])
def test_a_zero_times_what_is_not_finite_is_none(factor):
    """0 * inf is NaN, which the reader must go on seeing."""
    model, x = row_case(lambda y: (y * factor).nan_to_num(nan=0.5, posinf=1.0, neginf=-1.0))
    stays((model, x), "is not zero where")


def test_a_write_in_place_is_read_from_there_on():
    """What stands under the old name is the new value: exp_ leaves no zero where it has been."""

    def middle(y):
        y = y * 1.0
        kept = y
        y.exp_()
        return kept * 2.0

    stays(row_case(middle), "is not zero where")


def test_one_feature_that_meets_many_stays():
    case = row_case(lambda y: y + torch.zeros(7, dtype=torch.float64), width=1)
    stays(case, r"is broadcast in add", dead=(0,), warns=True)
