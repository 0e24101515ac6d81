"""A table, and what a training loop has around it: python examples/own_loop.py [--tiny]

Clipped gradients, a schedule, averaged weights that shrink along, a checkpoint in the middle, a plain network at the end.
"""

import argparse
import io

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import shrinknets_fast as sn


def made(width, example):
    """As in a new process, so for going on: full size."""
    layers = [nn.Linear(example.shape[1], width), nn.BatchNorm1d(width), nn.ReLU()]
    layers += [nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 1)]
    return sn.add_filters(nn.Sequential(*layers), example)


def around(model, example, steps):
    """Everything that goes with the model."""
    optimizer = torch.optim.AdamW(sn.param_groups(model, lr=3e-3, filter_lr=2e-2, weight_decay=1e-3))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    proximal = sn.ProximalL1(optimizer, model, lam=5e-3)  # in place of a penalty in the loss: exact zeros
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99), use_buffers=True)
    gc = sn.GarbageCollector(model, example, optimizers=optimizer, every=10, follow=average, follow_dead="drop")
    return optimizer, schedule, proximal, average, gc


def train(model, parts, x, y, steps):
    optimizer, schedule, _, average, gc = parts
    losses = []
    for _ in range(steps):
        rows = torch.randint(len(x), (128,))
        loss = nn.functional.mse_loss(model(x[rows]).squeeze(1), y[rows])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        gc.step()
        average.update_parameters(model)
        losses.append(loss.item())
    return losses


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true")
    width, steps = (64, 150) if parser.parse_args(argv).tiny else (1000, 3000)
    torch.manual_seed(0)
    x = torch.randn(4096, 12)  # your table
    y = x[:, 0] * x[:, 1] + torch.sin(2 * x[:, 2])

    model = made(width, x[:8])
    parts = around(model, x[:8], 2 * steps)
    before, first = sum(p.numel() for p in model.parameters()), train(model, parts, x, y, steps)[0]
    print("half way:", sn.features(model))
    parts[-1].trim()  # torch.save writes whole storages
    torch.save([thing.state_dict() for thing in (model, *parts)], file := io.BytesIO())  # or a path
    states = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    model = made(width, x[:8])
    sn.load_state_dict(model, states[0])  # first, so that everything else is made for the sizes that are left
    parts = around(model, x[:8], 2 * steps)
    for thing, state in zip(parts, states[1:], strict=True):
        thing.load_state_dict(state)
    last = train(model, parts, x, y, steps)[-1]

    after = sum(p.numel() for p in sn.fold_filters(model).parameters())
    print(f"parameters {before:,} to {after:,}, loss {first:.3f} to {last:.3f}")
    return before, after, first, last


if __name__ == "__main__":
    main()
