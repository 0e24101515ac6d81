"""Random small networks out of everything that has a rule. The same seed gives the same network."""

import random

import torch
import torch.nn.functional as F
from torch import nn

import shrinknets_fast as sn

ACTIVATIONS = [
    nn.ReLU,
    lambda: nn.ReLU(inplace=True),
    nn.SiLU,
    nn.GELU,
    nn.Sigmoid,
    nn.Tanh,
    lambda: nn.LeakyReLU(0.2),
    nn.Hardswish,
    nn.ELU,
    nn.Softplus,
    nn.PReLU,
    nn.Identity,
]


class Scale(nn.Module):
    """A parameter multiplied or added directly."""

    def __init__(self, shape, add):
        super().__init__()
        self.weight, self.add = nn.Parameter(torch.rand(shape) + 0.5), add

    def forward(self, x):
        return x + self.weight if self.add else x * self.weight


class Residual(nn.Module):
    def __init__(self, branch, swap):
        super().__init__()
        self.branch, self.swap = branch, swap

    def forward(self, x):
        return self.branch(x) - x if self.swap else x + self.branch(x)


class Dense(nn.Module):
    def __init__(self, branch, dim):
        super().__init__()
        self.branch, self.dim = branch, dim

    def forward(self, x):
        return torch.cat([x, self.branch(x)], self.dim)


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, down, up):
        super().__init__()
        self.down, self.up = down, up

    def forward(self, x):
        return x * torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))


class Halves(nn.Module):
    """Cuts the features in two, in one of several spellings, and joins them again."""

    def __init__(self, how, dim):
        super().__init__()
        self.how, self.dim = how, dim

    def extra_repr(self):
        return self.how

    def forward(self, x):
        half = x.shape[self.dim] // 2
        if self.how == "glu":
            return F.glu(x, self.dim)
        if self.how == "slices":
            return x.narrow(self.dim, 0, half) * x.narrow(self.dim, half, half)
        first, second = x.split(half, self.dim) if self.how == "split" else x.chunk(2, self.dim)
        if self.how == "swap":
            return torch.cat([second, torch.relu(first)], self.dim)
        return torch.stack([first, second]).sum(0) if self.how == "stack" else first * second.sigmoid()


class Moves(nn.Module):
    """Moves pixels and channels about and leaves the number of channels alone."""

    def __init__(self, how):
        super().__init__()
        self.how = how

    def extra_repr(self):
        return self.how

    def forward(self, x):
        if self.how == "shuffle":
            b, c, h, w = x.shape
            return x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
        if self.how == "there and back":
            return x.flatten(2).transpose(1, 2).contiguous().mT.unflatten(2, x.shape[2:])
        if self.how == "pad":
            return F.pad(x, (1, 0, 0, 1))[:, :, 1:, :-1]
        if self.how == "normalize":
            return F.normalize(x, dim=1)
        if self.how == "norm":
            return x * torch.rsqrt(x.square().sum(1, keepdim=True) + 1)
        if self.how == "spatial softmax":
            return x * x.flatten(2).softmax(-1).view_as(x)
        return F.interpolate(x, scale_factor=2, mode="nearest")[:, :, ::2, ::2]


class Attention(nn.Module):
    """Over tokens (B, N, C), from linear layers; pixels are tokens where x is an image."""

    def __init__(self, query, key, value, out, heads, how):
        super().__init__()
        self.query, self.key, self.value, self.out, self.heads, self.how = query, key, value, out, heads, how

    def forward(self, x):
        image = x.ndim == 4
        t = x.flatten(2).transpose(1, 2) if image else x
        q, k, v = (
            layer(t).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        if self.how == "sdpa":
            y = F.scaled_dot_product_attention(q, k, v)
        elif self.how == "scaled":
            y = F.scaled_dot_product_attention(q, k, v, scale=0.4)
        elif self.how == "einsum":
            y = torch.einsum("bhnm,bhmc->bhnc", torch.einsum("bhnc,bhmc->bhnm", q, k).softmax(-1), v)
        else:
            y = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v
        y = self.out(y.transpose(1, 2).flatten(2))
        return y.transpose(1, 2).unflatten(2, x.shape[2:]) if image else y


class Maker:
    """Draws modules. ``filters``: whether layers get filters here, at any place, useful or not."""

    def __init__(self, seed, filters):
        self.random = random.Random(seed)
        self.filters = filters

    def chance(self, share):
        return self.random.random() < share

    def pick(self, *choices):
        return self.random.choice(choices)

    def activation(self):
        return self.random.choice(ACTIVATIONS)()

    def filtered(self, share=0.4):
        return self.filters and self.chance(share)

    def linear(self, inputs, outputs):
        bias = self.chance(0.7)
        return (sn.FilteredLinear if self.filtered() else nn.Linear)(inputs, outputs, bias=bias)

    def conv(self, inputs, outputs, kernel=3, groups=1):
        kind = sn.FilteredConv2d if self.filtered(0.3) else nn.Conv2d
        padding_mode = self.pick("zeros", "zeros", "reflect", "replicate")
        options = {"padding": kernel // 2, "padding_mode": padding_mode} if kernel > 1 else {}
        return kind(inputs, outputs, kernel, groups=groups, bias=self.chance(0.5), **options)

    def norm(self, width):
        kind = self.pick("batch", "batch", "batch", "none", "none", "instance", "group")
        if kind == "batch":
            return (sn.FilteredBatchNorm2d if self.filtered(0.6) else nn.BatchNorm2d)(width, affine=True)
        if kind == "instance":
            return nn.InstanceNorm2d(width, affine=self.chance(0.5))
        return nn.GroupNorm(2, width) if kind == "group" and self.chance(0.5) else nn.Identity()

    def layer(self, inputs, outputs):
        """Convolution, norm, activation, each perhaps followed by a filter."""
        kind = self.pick("plain", "plain", "plain", "grouped", "depthwise", "transposed", "pointwise")
        if kind == "grouped" and inputs % 2 == outputs % 2 == 0:
            made = self.conv(inputs, outputs, groups=2)
        elif kind == "depthwise" and outputs % inputs == 0:
            made = self.conv(inputs, outputs, groups=inputs)
        elif kind == "transposed":
            made = nn.ConvTranspose2d(inputs, outputs, 3, padding=1, bias=self.chance(0.5))
        else:
            made = self.conv(inputs, outputs, 1 if kind == "pointwise" else 3)
        parts = [made, self.norm(outputs), self.activation()]
        if self.filtered(0.3):
            parts.insert(self.random.randrange(1, 4), sn.Filter(outputs))
        return nn.Sequential(*[p for p in parts if not isinstance(p, nn.Identity)])

    def block(self, width):
        """(module, its output width)."""
        kind = self.pick(
            "layer", "layer", "residual", "residual", "dense", "gate", "halves", "moves", "scale", "attention", "pool"
        )
        if kind == "layer":
            out = self.pick(4, 6, 8, 2 * width)
            return self.layer(width, out), out
        if kind == "residual":
            inner = self.pick(4, 6, 8)
            return Residual(nn.Sequential(self.layer(width, inner), self.layer(inner, width)), self.chance(0.3)), width
        if kind == "dense":
            out = self.pick(2, 4)
            return Dense(self.layer(width, out), 1), width + out
        if kind == "gate":
            return Gate(self.conv(width, 4, 1), self.conv(4, width, 1)), width
        if kind == "halves":
            how = self.pick("glu", "slices", "split", "chunk", "swap", "stack")
            return Halves(how, 1), width if how == "swap" else width // 2
        if kind == "moves":
            hows = ("shuffle", "there and back", "pad", "normalize", "norm", "spatial softmax", "resize")
            return Moves(self.pick(*hows)), width
        if kind == "scale":
            return Scale(self.pick((width, 1, 1), (1,), (1, width, 1, 1)), self.chance(0.3)), width
        if kind == "attention":
            return self.attention(width), width
        return self.pick(nn.AvgPool2d, nn.MaxPool2d)(3, stride=1, padding=1), width

    def attention(self, width):
        heads, inner = self.pick(1, 2), self.pick(4, 8)
        layers = [self.linear(width, inner) for _ in range(3)]
        return Attention(*layers, self.linear(inner, width), heads, self.pick("sdpa", "scaled", "einsum", "by hand"))

    def head(self, width):
        """From rows of features to 3 outputs."""
        parts = []
        for _ in range(self.random.randrange(3)):
            out = self.pick(6, 8, 10)
            parts += [self.linear(width, out), self.activation()]
            if self.filtered(0.3):
                parts.append(sn.Filter(out, dim=-1))
            if self.chance(0.2):
                parts.append(nn.LayerNorm(out))
            if self.chance(0.2):
                parts.append(
                    Residual(nn.Sequential(self.linear(out, 5), self.activation(), self.linear(5, out)), False)
                )
            if self.chance(0.2):
                parts.append(Halves(self.pick("glu", "chunk", "split"), 1))
                out //= 2
            width = out
        return [*parts, nn.Linear(width, 3)]


def random_network(seed, filters=True):
    """(model in float64, input)."""
    maker = Maker(seed, filters)
    torch.manual_seed(seed)
    width, parts = 4, [maker.layer(3, 4)]
    for _ in range(maker.random.randrange(1, 6)):
        module, width = maker.block(width)
        if width < 2 or width % 2 or width > 32:
            width += width % 2
            module = nn.Sequential(module, nn.LazyConv2d(4, 1))
            width = 4
        parts.append(module)
    if maker.chance(0.5):
        parts += [nn.AdaptiveAvgPool2d(maker.pick(1, 2)), nn.Flatten()]
        parts += maker.head(width * parts[-2].output_size ** 2)
    else:
        parts += [nn.Flatten(), *maker.head(width * 25)]
    x = torch.randn(3, 3, 5, 5, dtype=torch.float64)
    model = nn.Sequential(*parts).double()
    model(x)  # lazy layers find their sizes
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.affine:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return model, x


@torch.no_grad()
def strike(model, seed):
    """Random deaths: per filter none, some, most or, rarely, all of its features. Returns how many."""
    draw, total = random.Random(seed), 0
    for filter in sn.filters.named_filters(model).values():
        share = draw.choice([0.0, 0.3, 0.3, 0.6, 0.6, 0.9, 1.0])
        dead = torch.tensor([draw.random() < share for _ in range(filter.theta.numel())])
        filter.theta[dead] = -0.1
        total += int(dead.sum())
    return total
