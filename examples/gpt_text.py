"""A small GPT over characters, whose blocks find their own widths: python examples/gpt_text.py [--text FILE] [--tiny]

The hidden units of each MLP and the value channels of each head die and leave. The residual stream stays: layer norms count its
features. sn.coverage says so.
"""

import argparse
from pathlib import Path

import torch
from torch import nn

import shrinknets_fast as sn


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.out = nn.Linear(width, width, bias=False)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        y = self.norm1(x)
        q, k, v = (f(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    def __init__(self, symbols, width, heads, depth, context):
        super().__init__()
        self.symbol, self.place = nn.Embedding(symbols, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, symbols))

    def forward(self, tokens):
        return self.head(self.blocks(self.symbol(tokens) + self.place.weight[: tokens.shape[1]]))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, default=Path(__file__), help="default: this file")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args(argv)
    torch.manual_seed(0)
    width, heads, depth, context, batch, steps = (16, 2, 1, 16, 8, 80) if options.tiny else (128, 4, 4, 128, 32, 3000)
    lam, filter_lr = (1e-2, 3e-2) if options.tiny else (1e-3, 5e-3)

    text = options.text.read_text()
    symbols = sorted(set(text))
    data = torch.tensor([symbols.index(c) for c in text])
    model = GPT(len(symbols), width, heads, depth, context)
    example = torch.zeros(2, context, dtype=torch.long)
    sn.add_filters(model, example)
    print(sn.coverage(model, example))
    optimizer = torch.optim.AdamW(sn.param_groups(model, lr=3e-3, filter_lr=filter_lr, weight_decay=1e-2))
    gc = sn.GarbageCollector(model, example, optimizers=optimizer, every=10)
    before, first = sum(p.numel() for p in model.parameters()), None
    for _ in range(steps):
        rows = torch.randint(len(data) - context - 1, (batch, 1)) + torch.arange(context + 1)
        tokens = data[rows]
        loss = nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        first = first or loss.item()
        optimizer.zero_grad()
        (loss + lam * sn.penalty(model)).backward()
        optimizer.step()
        gc.step()
    print(sn.features(model))
    after = sum(p.numel() for p in sn.fold_filters(model).parameters())
    print(f"parameters {before:,} to {after:,}, loss {first:.3f} to {loss.item():.3f}")
    return before, after, first, loss.item()


if __name__ == "__main__":
    main()
