"""Adapters of low rank (LoRA) find their ranks: python examples/lora.py [--tiny]

A frozen network learns a new task through y = W x + B A x. The filter stands between A and B, so what dies is a rank.
"""

import argparse

import torch
from torch import nn

import shrinknets_fast as sn


class LoRA(nn.Module):
    """A frozen linear layer and its adapter, which starts at zero."""

    def __init__(self, base, rank):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = sn.FilteredLinear(base.in_features, rank, bias=False, init=1.0)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))

    @torch.no_grad()
    def merged(self):
        """The plain layer. ``down.weight`` is the function's, with the filter in it, so this product is right."""
        self.base.weight += self.up.weight @ self.down.weight
        return self.base


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args(argv)
    torch.manual_seed(0)
    width, rank, true_rank, steps = (32, 8, 2, 250) if options.tiny else (512, 64, 4, 1000)

    network = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
    x = torch.randn(4096, width)
    scale = (true_rank * width) ** 0.5
    with torch.no_grad():  # the new task: the old one with a change of low rank in each layer
        change = [torch.randn(width, true_rank) @ torch.randn(true_rank, width) / scale for _ in range(2)]
        h = torch.relu(network[0](x) + x @ change[0].t())
        y = network[2](h) + h @ change[1].t()

    model = nn.Sequential(LoRA(network[0], rank), nn.ReLU(), LoRA(network[2], rank))
    optimizer = torch.optim.Adam(sn.param_groups(model, lr=3e-3, filter_lr=2e-2))  # the frozen ones get no gradient
    gc = sn.GarbageCollector(model, x[:2], optimizers=optimizer, every=10)
    lam, first, before = 1e-2, None, sum(p.numel() for p in model.parameters() if p.requires_grad)
    for _ in range(steps):
        rows = torch.randint(len(x), (128,))
        loss = nn.functional.mse_loss(model(x[rows]), y[rows])
        first = first or loss.item()
        optimizer.zero_grad()
        (loss + lam * sn.penalty(model)).backward()
        optimizer.step()
        gc.step()
    after = sum(p.numel() for p in model.parameters() if p.requires_grad)
    print("ranks left:", {name: alive for name, (alive, _) in sn.features(model).items()})
    print(f"trained parameters {before:,} to {after:,}, loss {first:.4f} to {loss.item():.4f}")

    with torch.no_grad():
        wanted = model(x[:8])
        plain = nn.Sequential(model[0].merged(), nn.ReLU(), model[2].merged())
        torch.testing.assert_close(plain(x[:8]), wanted, rtol=1e-4, atol=1e-4)
    print("merged into plain layers: the same outputs")
    return before, after, first, loss.item()


if __name__ == "__main__":
    main()
