"""Several processes train one model: torchrun --nproc-per-node 2 examples/ddp.py [--tiny]

As it is, python examples/ddp.py, it is a group of one process. Every rank makes the same calls; rank 0 prints.
"""

import argparse
import os

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

import shrinknets_fast as sn


def made(width, example):
    layers = [nn.Linear(example.shape[1], width), nn.BatchNorm1d(width), nn.ReLU()]
    layers += [nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 1)]
    model = sn.add_filters(nn.Sequential(*layers), example)  # first, so that the wrapper averages the thetas too
    return sn.FilteredSyncBatchNorm.convert_sync_batchnorm(model)  # statistics of all ranks


def train(wrapper, gc, optimizer, x, y, steps):
    rank, world = distributed.get_rank(), distributed.get_world_size()
    losses = []
    for _ in range(steps):
        rows = torch.randint(len(x), (128,))[rank::world]  # of the same batch on every rank
        task = nn.functional.mse_loss(wrapper(x[rows]).squeeze(1), y[rows])
        optimizer.zero_grad()
        (task + 3e-3 * sn.penalty(wrapper)).backward()
        optimizer.step()
        gc.step()  # on every rank; the wrapper stays the one that it is
        distributed.all_reduce(loss := task.detach() / world)
        losses.append(loss.item())
    return losses


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true")
    width, steps = (64, 200) if parser.parse_args(argv).tiny else (1000, 2000)
    if "RANK" in os.environ:  # torchrun's
        distributed.init_process_group("gloo")  # or "nccl", with model and data on torch.device("cuda", local rank)
    else:
        distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        return run(width, steps)
    finally:
        distributed.destroy_process_group()


def run(width, steps):
    torch.manual_seed(0)
    x = torch.randn(4096, 12)  # your table
    y = x[:, 0] * x[:, 1] + torch.sin(2 * x[:, 2])

    model = made(width, x[:8])
    wrapper = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(sn.param_groups(wrapper, lr=3e-3, filter_lr=2e-2, weight_decay=1e-3))
    gc = sn.GarbageCollector(wrapper, x[:8], optimizers=optimizer, every=5)
    before = sum(p.numel() for p in model.parameters())
    losses = train(wrapper, gc, optimizer, x, y, steps)

    plain = sn.fold_filters(wrapper)
    after = sum(p.numel() for p in plain.parameters())
    if distributed.get_rank() == 0:
        gc.trim()  # torch.save writes whole storages; this needs no other rank
        print(f"parameters {before:,} to {after:,}, loss {losses[0]:.3f} to {losses[-1]:.3f}")
    return before, after, losses[0], losses[-1]


if __name__ == "__main__":
    main()
