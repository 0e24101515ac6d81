"""Hand-written networks of images: U-Nets, generators, autoencoders, mixers."""

import math

import torch
from torch import nn
from torch.nn import functional as F


def double_conv(a, b):
    return nn.Sequential(
        nn.Conv2d(a, b, 3, padding=1),
        nn.BatchNorm2d(b),
        nn.ReLU(True),
        nn.Conv2d(b, b, 3, padding=1),
        nn.BatchNorm2d(b),
        nn.ReLU(True),
    )


class UNet(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.down = nn.ModuleList(
            [double_conv(3, width), double_conv(width, 2 * width), double_conv(2 * width, 4 * width)]
        )
        self.up = nn.ModuleList(
            [nn.ConvTranspose2d(4 * width, 2 * width, 2, 2), nn.ConvTranspose2d(2 * width, width, 2, 2)]
        )
        self.merge = nn.ModuleList([double_conv(4 * width, 2 * width), double_conv(2 * width, width)])
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, x):
        skips = []
        for k, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if k else x)
            skips.append(x)
        for up, merge, skip in zip(self.up, self.merge, skips[-2::-1], strict=True):
            x = merge(torch.cat([skip, up(x)], 1))
        return self.head(x)


class TimeBlock(nn.Module):
    """Group norm, SiLU, convolution, twice; the embedding of the time is added in between."""

    def __init__(self, a, b, emb):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(4, a), nn.Conv2d(a, b, 3, padding=1)
        self.emb = nn.Linear(emb, b)
        self.norm2, self.conv2 = nn.GroupNorm(4, b), nn.Conv2d(b, b, 3, padding=1)
        self.skip = nn.Conv2d(a, b, 1) if a != b else nn.Identity()

    def forward(self, x, emb):
        h = self.conv1(F.silu(self.norm1(x))) + self.emb(F.silu(emb))[:, :, None, None]
        return self.skip(x) + self.conv2(F.silu(self.norm2(h)))


class SpatialAttention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.norm, self.qkv, self.out = nn.GroupNorm(4, c), nn.Conv2d(c, 3 * c, 1), nn.Conv2d(c, c, 1)

    def forward(self, x):
        b, c, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, 3, c, h * w).unbind(1)
        weights = torch.softmax(q.transpose(1, 2) @ k * c**-0.5, -1)
        return x + self.out((v @ weights.transpose(1, 2)).reshape(b, c, h, w))


class DiffusionUNet(nn.Module):
    def __init__(self, c=16):
        super().__init__()
        self.c = c
        self.time = nn.Sequential(nn.Linear(c, 4 * c), nn.SiLU(), nn.Linear(4 * c, 4 * c))
        self.first = nn.Conv2d(3, c, 3, padding=1)
        self.down1, self.half1 = TimeBlock(c, c, 4 * c), nn.Conv2d(c, 2 * c, 3, 2, 1)
        self.down2, self.attn = TimeBlock(2 * c, 2 * c, 4 * c), SpatialAttention(2 * c)
        self.middle = TimeBlock(2 * c, 2 * c, 4 * c)
        self.narrow, self.up = nn.Conv2d(2 * c, c, 3, padding=1), TimeBlock(2 * c, c, 4 * c)
        self.last = nn.Sequential(nn.GroupNorm(4, c), nn.SiLU(), nn.Conv2d(c, 3, 3, padding=1))

    def forward(self, x, t):
        steps = torch.exp(-math.log(1e4) * torch.arange(self.c // 2, dtype=x.dtype) / (self.c // 2))
        emb = self.time(torch.cat([torch.sin(t[:, None] * steps), torch.cos(t[:, None] * steps)], 1))
        a = self.down1(self.first(x), emb)
        b = self.middle(self.attn(self.down2(self.half1(a), emb)), emb)
        b = self.narrow(F.interpolate(b, scale_factor=2.0, mode="nearest"))
        return self.last(self.up(torch.cat([a, b], 1), emb))


class Autoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encode = nn.Sequential(
            nn.Conv2d(1, 16, 3, 2, 1),
            nn.LeakyReLU(),
            nn.Conv2d(16, 32, 3, 2, 1),
            nn.LeakyReLU(),
            nn.Flatten(),
            nn.Linear(512, 20),
        )
        self.decode = nn.Sequential(
            nn.Linear(20, 512), nn.LeakyReLU(), nn.Unflatten(1, (32, 4, 4)), nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.LeakyReLU(),
            nn.ConvTranspose2d(16, 1, 4, 2, 1), nn.Sigmoid()
        )  # fmt: skip

    def forward(self, x):
        return self.decode(self.encode(x))


class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.mean, self.spread = nn.Linear(64, 48), nn.Linear(48, 8), nn.Linear(48, 8)
        self.decode = nn.Sequential(nn.Linear(8, 48), nn.ReLU(), nn.Linear(48, 64))

    def forward(self, x, noise):
        hidden = torch.relu(self.body(x))
        mean, spread = self.mean(hidden), self.spread(hidden)
        return self.decode(mean + torch.exp(0.5 * spread) * noise), mean, spread


def generator(width=16):
    layers, widths = [nn.ConvTranspose2d(24, 4 * width, 4, 1, 0, bias=False)], [4 * width, 2 * width, width]
    for a, b in zip(widths, [*widths[1:], 3], strict=True):
        layers += [nn.BatchNorm2d(a), nn.ReLU(True), nn.ConvTranspose2d(a, b, 4, 2, 1, bias=False)]
    return nn.Sequential(*layers, nn.Tanh())


def discriminator(width=16):
    spectral = nn.utils.parametrizations.spectral_norm
    return nn.Sequential(
        spectral(nn.Conv2d(3, width, 4, 2, 1)), nn.LeakyReLU(0.2), nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False),
        nn.BatchNorm2d(2 * width), nn.LeakyReLU(0.2), nn.Conv2d(2 * width, 1, 8)
    )  # fmt: skip


class StyleTransfer(nn.Module):
    """Instance norms and residual blocks, upsampling by interpolation."""

    def __init__(self, c=16):
        super().__init__()
        norm = lambda n: nn.InstanceNorm2d(n, affine=True)  # noqa: E731
        self.first = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(3, c, 3),
            norm(c),
            nn.ReLU(),
            nn.Conv2d(c, 2 * c, 3, 2, 1),
            norm(2 * c),
            nn.ReLU(),
        )
        blocks = [
            nn.Sequential(
                nn.Conv2d(2 * c, 2 * c, 3, 1, 1), norm(2 * c), nn.ReLU(), nn.Conv2d(2 * c, 2 * c, 3, 1, 1), norm(2 * c)
            )
            for _ in range(2)
        ]
        self.blocks = nn.ModuleList(blocks)
        self.last = nn.Sequential(
            nn.Upsample(scale_factor=2), nn.Conv2d(2 * c, c, 3, 1, 1), norm(c), nn.ReLU(), nn.Conv2d(c, 3, 3, 1, 1)
        )

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return self.last(x)


class Mixer(nn.Module):
    def __init__(self, c=32, patches=16):
        super().__init__()
        self.patch = nn.Conv2d(3, c, 8, 8)
        block = lambda n: nn.Sequential(nn.Linear(n, 2 * n), nn.GELU(), nn.Linear(2 * n, n))  # noqa: E731
        self.blocks = nn.ModuleList(
            [nn.ModuleList([nn.LayerNorm(c), block(patches), nn.LayerNorm(c), block(c)]) for _ in range(2)]
        )
        self.norm, self.head = nn.LayerNorm(c), nn.Linear(c, 10)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        for norm1, tokens, norm2, channels in self.blocks:
            x = x + tokens(norm1(x).transpose(1, 2)).transpose(1, 2)
            x = x + channels(norm2(x))
        return self.head(self.norm(x).mean(1))


def espcn():
    return nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2), nn.Tanh(), nn.Conv2d(32, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 36, 3, padding=1),
        nn.PixelShuffle(2), nn.Conv2d(9, 4, 3, padding=1), nn.PixelShuffle(2)
    )  # fmt: skip


class EDSR(nn.Module):
    def __init__(self, c=16):
        super().__init__()
        self.first = nn.Conv2d(3, c, 3, padding=1)
        blocks = [
            nn.Sequential(nn.Conv2d(c, c, 3, padding=1), nn.ReLU(True), nn.Conv2d(c, c, 3, padding=1)) for _ in range(3)
        ]
        self.blocks, self.last = nn.ModuleList(blocks), nn.Conv2d(c, c, 3, padding=1)
        self.up = nn.Sequential(nn.Conv2d(c, 4 * c, 3, padding=1), nn.PixelShuffle(2), nn.Conv2d(c, 3, 3, padding=1))

    def forward(self, x):
        x = body = self.first(x)
        for block in self.blocks:
            body = body + 0.1 * block(body)
        return self.up(x + self.last(body))


class Siamese(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(512, 24),
        )

    def forward(self, a, b):
        return (self.body(a) - self.body(b)).square().sum(1)


class SqueezeExcite(nn.Module):
    def __init__(self, c=24):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, c, 3, padding=1, bias=False), nn.BatchNorm2d(c)
        self.depth = nn.Conv2d(c, c, 3, padding=1, groups=c, bias=False)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(c, c // 4, 1), nn.ReLU(), nn.Conv2d(c // 4, c, 1), nn.Sigmoid()
        )
        self.point, self.head = nn.Conv2d(c, 2 * c, 1), nn.Linear(2 * c, 10)

    def forward(self, x):
        x = self.depth(torch.relu(self.norm(self.first(x))))
        x = torch.relu(self.point(x * self.gate(x)))
        return self.head(x.mean((2, 3)))


def lenet():
    return nn.Sequential(
        nn.Conv2d(1, 12, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(12, 24, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(384, 64), nn.ReLU(), nn.Linear(64, 10)
    )  # fmt: skip


def images(*shape):
    return torch.randn(2, *shape)


MODELS = {
    "lenet": lambda: (lenet(), images(1, 28, 28)),
    "unet": lambda: (UNet(), images(3, 16, 16)),
    "diffusion_unet": lambda: (DiffusionUNet(), (images(3, 16, 16), torch.tensor([3.0, 7.0]))),
    "autoencoder": lambda: (Autoencoder(), images(1, 16, 16)),
    "vae": lambda: (VAE(), (images(64), images(8))),
    "gan_generator": lambda: (generator(), images(24, 1, 1)),
    "gan_discriminator": lambda: (discriminator(), images(3, 32, 32)),
    "style_transfer": lambda: (StyleTransfer(), images(3, 16, 16)),
    "mlp_mixer": lambda: (Mixer(), images(3, 32, 32)),
    "espcn": lambda: (espcn(), images(1, 12, 12)),
    "edsr": lambda: (EDSR(), images(3, 12, 12)),
    "siamese": lambda: (Siamese(), (images(1, 14, 14), images(1, 14, 14))),
    "squeeze_excite": lambda: (SqueezeExcite(), images(3, 12, 12)),
}
