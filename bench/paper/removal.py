"""Does removing a random share of the dead, instead of all of them at once, smooth the loss at collections?

``python -m bench.paper.removal``: digits, for each ``removal=`` and seed one run. A row has, over its collections, the largest
change of the loss of a fixed batch from just before to just after one (relative), and how much the training loss rises in the 10
steps that follow, against the 10 before; the same rise at steps without a collection says what is noise.
"""

import argparse
import statistics

import torch
from torch.nn import functional as F

import shrinknets_fast as sn
from shrinknets_fast.training.data import load

from .. import rows
from .budget import SETTINGS, build

WINDOW = 10  # steps before and after a collection
LAM = 5e-3


def train(setting, data, seed, removal):
    model = build(setting, data, seed)
    optimizer = torch.optim.Adam(sn.param_groups(model, lr=setting.lr, filter_lr=setting.filter_lr), fused=True)
    gc = sn.GarbageCollector(model, data.images[:2], optimizers=optimizer, removal=removal, seed=seed)
    order = torch.Generator().manual_seed(seed)
    fixed = torch.arange(512)
    losses, collected, jumps = [], [], [0.0]
    for _ in range(setting.epochs):
        for batch in torch.randperm(len(data.labels), generator=order).split(setting.batch):
            loss = F.cross_entropy(model(data.images[batch]), data.labels[batch])
            optimizer.zero_grad()
            (loss + LAM * sn.penalty(model)).backward()
            optimizer.step()
            losses.append(loss.item())
            with torch.no_grad():
                before = F.cross_entropy(model(data.images[fixed]), data.labels[fixed]).item()
                if gc.step():
                    after = F.cross_entropy(model(data.images[fixed]), data.labels[fixed]).item()
                    jumps.append(abs(after - before) / before)
                    collected.append(len(losses))
    with torch.no_grad():
        accuracy = float((model.eval()(data.test_images).argmax(1) == data.test_labels).float().mean())
    near = {k + d for k in collected for d in range(-WINDOW, WINDOW)}
    elsewhere = [k for k in range(WINDOW, len(losses) - WINDOW) if k not in near]
    return {
        "seed": seed,
        "removal": removal,
        "collections": len(collected),
        "largest_jump": max(jumps),
        "rise_after": rise(losses, collected),
        "rise_elsewhere": rise(losses, elsewhere),
        "accuracy": accuracy,
        "parameters": sum(p.numel() for p in sn.fold_filters(model).parameters()),
    }


def rise(losses, steps):
    """Median over ``steps`` of the mean loss in the window after one over that in the window before."""
    ratios = [
        statistics.fmean(losses[k : k + WINDOW]) / statistics.fmean(losses[k - WINDOW : k])
        for k in steps
        if WINDOW <= k <= len(losses) - WINDOW
    ]
    return statistics.median(ratios) if ratios else None


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--removals", type=float, nargs="+", default=[1.0, 0.5, 0.1])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", default=rows.RESULTS)
    arguments = parser.parse_args()
    setting = SETTINGS[0]
    data = load(setting.data, None)
    known = [row for row in rows.read(arguments.out) if row["family"] == "removal"]
    done = {(row["removal"], row["seed"]) for row in known}
    for seed in range(arguments.seeds):
        for removal in arguments.removals:
            if (removal, seed) not in done:
                found = train(setting, data, seed, removal)
                case = f"MLP {setting.width}-{setting.width}, {setting.data}, lambda {LAM:g}"
                rows.append(rows.make("removal", case, f"removal {removal:g}", "cpu", **found), arguments.out)
                print(found, flush=True)


if __name__ == "__main__":
    main()
