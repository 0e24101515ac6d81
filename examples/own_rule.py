"""An op and a module of one's own, taught with a rule each: python examples/own_rule.py [--tiny]

Without their rules both would keep every feature that reaches them. docs/rules.md says what a rule may do.
"""

import argparse

import torch
from torch import nn

import shrinknets_fast as sn


@torch.library.custom_op("own_rule::scale_rows", mutates_args=())
def scale_rows(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    return x * gain


scale_rows.register_fake(lambda x, gain: torch.empty_like(x))
scale_rows.register_autograd(
    lambda ctx, grad: (grad * ctx.saved_tensors[1], (grad * ctx.saved_tensors[0]).sum(0)),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)


@sn.register_rule(torch.ops.own_rule.scale_rows.default)
def scale_rows_rule(op):
    op.unify(op.axis(op["x"], -1), op.axis(op["gain"], 0))  # they hold the same features
    return op.output(op.axes(op["x"]), lambda zeros: zeros.of(op["x"]))  # zero in, zero out


class Scaled(nn.Module):
    def __init__(self, features):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(features))

    def forward(self, x):
        return torch.ops.own_rule.scale_rows(x, self.gain)


class PeakNorm(Scaled):
    """Each feature by its largest magnitude in the batch, times a gain."""

    def forward(self, x):
        return x / x.abs().amax(0, keepdim=True).clamp_min(1e-6) * self.gain


@sn.register_rule(PeakNorm)
def peak_norm_rule(op):
    op.unify(op.axis(op.inputs[0], 1), op.axis(op.parameter("gain"), 0))
    return op.output(op.axes(op.inputs[0]), lambda zeros: zeros.of(op.inputs[0]))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true")
    width, steps = (64, 150) if parser.parse_args(argv).tiny else (1000, 1000)
    torch.manual_seed(0)
    x = torch.randn(2048, 16)
    y = (x @ torch.randn(16, 4)).argmax(1)
    layers = [nn.Linear(16, width), Scaled(width), nn.ReLU(), nn.Linear(width, width), PeakNorm(width), nn.ReLU()]
    model = sn.add_filters(nn.Sequential(*layers, nn.Linear(width, 4)), x[:32])
    optimizer = torch.optim.Adam(sn.param_groups(model, lr=3e-3, filter_lr=2e-2))
    gc = sn.GarbageCollector(model, x[:32], optimizers=optimizer, every=10)
    before, losses = sum(p.numel() for p in model.parameters()), []
    for _ in range(steps):
        rows = torch.randint(len(x), (64,))
        loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
        losses.append(loss.item())
        optimizer.zero_grad()
        (loss + 5e-3 * sn.penalty(model)).backward()
        optimizer.step()
        gc.step()
    after = sum(p.numel() for p in sn.fold_filters(model).parameters())
    print(f"{sn.features(model)}, parameters {before:,} to {after:,}, loss {losses[0]:.3f} to {losses[-1]:.3f}")
    return before, after, losses[0], losses[-1]


if __name__ == "__main__":
    main()
