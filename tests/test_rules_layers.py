"""Convolutions of all kinds, norms, tables, recurrent layers."""

import pytest
import torch
import torch.nn.functional as F
from rule_cases import after, image_case, leaves, row_case, stays
from torch import nn

import shrinknets_fast as sn


def volume_case(dims, make):
    torch.manual_seed(0)
    kind = {1: sn.FilteredConv1d, 2: sn.FilteredConv2d, 3: sn.FilteredConv3d}[dims]
    from rule_cases import Between

    x = torch.randn(2, 3, *[5] * dims, dtype=torch.float64)
    return Between(kind(3, 8, 3, padding=1, init=0.7), make, x), x


CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("groups, out, removed", [(1, 6, 4), (2, 6, 4), (2, 4, 4), (4, 4, 4), (8, 8, 4), (8, 24, 4)])
def test_conv(dims, groups, out, removed):
    middle = CONV[dims](8, out, 3, padding=1, groups=groups, bias=False, stride=2, dilation=1)
    model, x = volume_case(dims, middle)
    leaves((model, x), removed)
    assert middle.in_channels == 8 - removed
    if groups == 8:
        assert middle.groups == 4 and middle.out_channels == out // 2


def test_depthwise_bias_keeps():
    stays(image_case(nn.Conv2d(8, 8, 3, groups=8)), r"is not zero where reader \(linear\) reads it")


def test_groups_keep_unequal_deaths():
    leaves(image_case(nn.Conv2d(8, 4, 1, groups=2)), 2, dead=(0, 1, 2, 5))


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("groups, out, removed", [(1, 6, 4), (2, 6, 4), (8, 8, 4), (8, 16, 4)])
def test_conv_transpose(dims, groups, out, removed):
    middle = TRANSPOSED[dims](8, out, 2, stride=2, groups=groups, bias=False)
    leaves(volume_case(dims, middle), removed)
    assert middle.in_channels == 4 and middle.groups == (4 if groups == 8 else groups)


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_features_made_by_groups(kind, groups):
    """The dead are on the output side here: a stand-alone filter behind the convolution."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.made = nn.Sequential(nn.Conv2d(3, 6, 1), kind(6, 12, 3, groups=groups))
            self.first, self.reader = sn.Filter(12, init=0.7), nn.Conv2d(12, 2, 1)

        def forward(self, x):
            return self.reader(self.first(self.made(x)))

    torch.manual_seed(0)
    dead, leave = {1: ((0, 5), 2), 2: ((1, 7, 8), 2), 3: ((2, 6, 10, 11), 3), 6: ((2, 3, 10), 2)}[groups]
    model = Model().double()
    after(model, torch.randn(2, 3, 6, 6, dtype=torch.float64), dead=dead)
    assert model.reader.in_channels == 12 - leave


def test_batch_norm_in_between_keeps():
    stays(image_case(nn.BatchNorm2d(8)), "is not zero where reader")


def test_batch_norm_over_another_axis():
    class Swapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(5)

        def forward(self, x):
            return self.norm(x)

    stays(row_case(nn.Sequential(Swapped(), sn.Filter(8, dim=-1))), "is normalised with others by middle.0.norm")


def test_instance_norm():
    leaves(image_case(nn.InstanceNorm2d(8)))
    stays(image_case(nn.InstanceNorm2d(8, affine=True)), "is not zero where reader")
    model, x = image_case(
        nn.Sequential(nn.InstanceNorm2d(8, affine=True, track_running_stats=True), nn.Conv2d(8, 8, 1))
    )
    stays((model, x), "is not zero where middle.1")


@pytest.mark.parametrize("norm", [nn.LayerNorm(8), nn.LayerNorm(8, bias=False), nn.RMSNorm(8), nn.LayerNorm((5, 8))])
def test_norms_that_count(norm):
    stays(row_case(norm), r"is normalised with others by middle \((layer|rms)_norm\), which counts its features")


def test_group_norm():
    stays(image_case(nn.GroupNorm(2, 8)), r"is normalised with others by middle \(group_norm\)")


def test_local_response_norm():
    removed, text = after(*image_case(nn.LocalResponseNorm(3)))
    assert removed == 0 and "avg_pool3d" in text, text


@pytest.mark.parametrize("layer", ["LSTM", "GRU", "RNN"])
def test_recurrent(layer):
    class First(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = getattr(nn, layer)(8, 6)

        def forward(self, x):
            return self.rnn(x)[0]

    if layer == "RNN":
        stays(row_case(First()), r"is read by middle.rnn \(\w+\): nn.RNN mixes its features", warns=True)
    else:
        leaves(row_case(First()))


def test_embedding_columns_leave():
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.first, self.reader = nn.Embedding(11, 8), sn.Filter(8, dim=-1, init=0.5), nn.Linear(8, 3)

        def forward(self, x):
            return self.reader(self.first(self.table(x)))

    model = Table().double()
    leaves((model, torch.randint(11, (2, 5))))
    assert model.table.weight.shape == (11, 4) and model.table.embedding_dim == 4


def test_bilinear():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.two = nn.Bilinear(8, 8, 5)

        def forward(self, x):
            return self.two(x, x.sin())

    leaves(row_case(Two()))


def test_pixel_shuffle():
    leaves(image_case(nn.PixelShuffle(2)), 4, dead=(0, 1, 2, 3, 5))
    leaves(image_case(nn.PixelShuffle(2)), 0, dead=(1, 2, 5))
    leaves(image_case(nn.PixelUnshuffle(2)))
    leaves(image_case(nn.Sequential(nn.PixelUnshuffle(2), nn.PixelShuffle(2))))


def test_channel_shuffle():
    leaves(image_case(nn.ChannelShuffle(2)))
    leaves(image_case(nn.ChannelShuffle(2)), 2, dead=(1, 5, 6))

    def by_hand(x):
        b, c, h, w = x.shape
        return x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, -1, h, w)

    leaves(image_case(by_hand), 2, dead=(1, 5, 6))


@pytest.mark.parametrize(
    "middle",
    [
        nn.Upsample(scale_factor=2),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.Upsample(size=(5, 7), mode="bicubic"),
        nn.ZeroPad2d(1),
        nn.ReflectionPad2d(1),
        nn.ReplicationPad2d((1, 0, 2, 1)),
        nn.CircularPad2d(1),
        nn.MaxPool2d(2),
        nn.AvgPool2d(3, padding=1),
        nn.AdaptiveAvgPool2d(2),
        nn.AdaptiveMaxPool2d(2),
        nn.LPPool2d(2, 2),
        nn.Unfold(2),
    ],
    ids=lambda m: type(m).__name__,
)
def test_spatial(middle):
    leaves(image_case(middle))


def test_constant_padding_is_not_zero():
    stays(image_case(nn.ConstantPad2d(1, 0.5)), "is not zero where reader")


def test_padded_channels():
    leaves(image_case(lambda x: nn.functional.pad(x, (0, 0, 0, 0, 2, 3))))


class Computed(nn.Module):
    """A grouped convolution whose weight is computed."""

    def __init__(self, groups, transposed, width=8):
        super().__init__()
        self.groups, self.call = groups, F.conv_transpose2d if transposed else F.conv2d
        self.register_buffer("kernel", torch.randn(1, 1 if groups == width else width // groups, 3, 3))

    def forward(self, x):
        kernel = self.kernel.repeat(8, 1, 1, 1)
        return self.call(x, kernel, groups=self.groups)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("groups", [2, 8])
def test_groups_with_a_computed_weight(groups, transposed):
    model, x = image_case(Computed(groups, transposed))
    after(model, x, warns=True)


def test_renorm_measures_the_axes_beside_its_own():
    class Renorm(nn.Conv2d):
        def forward(self, x):
            return F.conv2d(x, torch.renorm(self.weight, 2, 0, 1.0))

    model, x = image_case(nn.Identity(), reader=Renorm(8, 4, 3))
    assert after(model, x)[0] == 0


@pytest.mark.parametrize("affine", [False, True])
def test_a_batch_norm_behind_a_filter_moves_its_zeros(affine):
    """A dead channel is -mean / std behind it: no zero, whether a bias is added or not."""
    norm = nn.BatchNorm2d(8, affine=affine)
    norm.running_mean.copy_(torch.linspace(-0.5, 0.9, 8))
    stays(image_case(norm), "is not zero where")


@pytest.mark.parametrize("tracked", [False, True])
def test_an_instance_norm_moves_zeros_by_running_statistics_alone(tracked):
    norm = nn.InstanceNorm2d(8, track_running_stats=tracked)
    if tracked:
        norm.running_mean.copy_(torch.linspace(-0.5, 0.9, 8))
        stays(image_case(norm), "is not zero where")
    else:
        leaves(image_case(norm))


class TiedEmbedding(nn.Module):
    """Rows that are looked up by number, and are the outputs of a layer too."""

    def __init__(self):
        super().__init__()
        self.words, self.filter, self.out = nn.Embedding(8, 4), sn.Filter(8), nn.Linear(8, 3)

    def forward(self, x):
        looked_up = self.words(torch.tensor([1, 7]))
        return self.out(self.filter(F.linear(x, self.words.weight))) + looked_up.sum()


def test_rows_that_are_looked_up_by_number_stay():
    model, x = TiedEmbedding().double(), torch.randn(3, 4, dtype=torch.float64)
    with torch.no_grad():
        model.filter.theta[[2, 5]] = 0
    gc = sn.GarbageCollector(model, x)
    assert not gc.collect().removed and "is looked up by number in words (embedding)" in gc.explain()
