"""A residual network finds its widths and its depth: python examples/resnet_cifar.py [--data ROOT] [--tiny]

--data: where torchvision's CIFAR-10 lies or is downloaded to; without it images are made up. --tiny: seconds, for tests.
"""

import argparse

import torch
from torch import nn

import shrinknets_fast as sn


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs),
        )  # fmt: skip
        self.shortcut = nn.Identity()
        if inputs != outputs or stride > 1:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        return torch.relu(self.shortcut(x) + self.branch(x))


def resnet(width, blocks):
    layers = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    widths = [width, *(width * 2**stage for stage in range(3) for _ in range(blocks))]
    for i, (inputs, outputs) in enumerate(zip(widths, widths[1:], strict=False)):
        layers.append(Block(inputs, outputs, 2 if i and i % blocks == 0 else 1))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10))


def images(root, count, side):
    if root is None:  # ten patterns under noise
        labels = torch.randint(10, (count,))
        return torch.randn(10, 3, side, side)[labels] + torch.randn(count, 3, side, side), labels
    from torchvision.datasets import CIFAR10

    data = CIFAR10(root, train=True, download=True)
    x = torch.from_numpy(data.data).permute(0, 3, 1, 2).float() / 255
    return (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True), torch.tensor(data.targets)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--lam", type=float, default=1e-3, help="how far it shrinks; default: 1e-3")
    options = parser.parse_args(argv)
    torch.manual_seed(0)
    width, blocks, steps, batch, side = (8, 1, 60, 16, 8) if options.tiny else (64, 3, 4000, 128, 32)
    lam, filter_lr = (2e-2, 5e-2) if options.tiny else (options.lam, 1e-2)
    x, y = images(options.data, 256 if options.tiny else 4096, side)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x, y, model = x.to(device), y.to(device), resnet(width, blocks).to(device)
    sn.add_filters(model, x[:2], residual="tied", depth=True)  # trunks too, and a gate behind each branch
    optimizer = torch.optim.AdamW(sn.param_groups(model, lr=1e-3, filter_lr=filter_lr, weight_decay=1e-2))
    gc = sn.GarbageCollector(model, x[:2], optimizers=optimizer)
    before, first = sum(p.numel() for p in model.parameters()), None
    for step in range(steps):
        rows = torch.randint(len(x), (batch,), device=device)
        loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
        first = first or loss.item()
        optimizer.zero_grad()
        (loss + lam * sn.penalty(model)).backward()
        optimizer.step()
        if found := gc.step():
            print(f"step {step}: removed {found.removed} {' '.join(found.branches)}")
    after = sum(p.numel() for p in sn.fold_filters(model).parameters())
    print(f"parameters {before:,} to {after:,}, loss {first:.3f} to {loss.item():.3f}")
    return before, after, first, loss.item()


if __name__ == "__main__":
    main()
