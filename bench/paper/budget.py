"""Does a budget end at the asked size, and is it as good there as a fixed lambda that ended there by itself?

``python -m bench.paper.budget --data-dir ROOT``: for each seed a run with each fixed lambda, then one with ``sn.Budget`` to the
size where that one ended, same epochs and batches; then the targets of a list. A row per run; what has one is not run again
unless ``--again budget`` says so: of several rows of a run the newest counts. The last lines compare the two.
"""

import argparse
import statistics
import time
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

import shrinknets_fast as sn
from shrinknets_fast.training.data import load

from .. import rows


@dataclass(frozen=True)
class Setting:
    data: str
    width: int
    epochs: int
    batch: int
    lams: tuple
    targets: tuple
    lr: float = 1e-3
    filter_lr: float = 1e-2


SETTINGS = (
    Setting("digits", 500, 30, 32, (1e-3, 5e-3), (3_000, 10_000, 50_000)),
    Setting("mnist", 300, 6, 256, (1e-3, 3e-3), (10_000, 30_000, 100_000)),
)


def build(setting, data, seed):
    torch.manual_seed(seed)
    inputs, width = data.images[0].numel(), setting.width
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    )
    return sn.add_filters(model, data.images[:2])


def train(setting, data, seed, lam=None, target=None, **options):
    """The fields of a row. options: of the collector."""
    model = build(setting, data, seed)
    optimizer = torch.optim.Adam(sn.param_groups(model, lr=setting.lr, filter_lr=setting.filter_lr), fused=True)
    gc = sn.GarbageCollector(model, data.images[:2], optimizers=optimizer, **options)
    steps = setting.epochs * -(-len(data.labels) // setting.batch)
    budget = sn.Budget(model, data.images[:2], parameters=target, steps=steps) if target else None
    order = torch.Generator().manual_seed(seed)
    reached, took, start = None, 0, time.perf_counter()
    for _ in range(setting.epochs):
        for batch in torch.randperm(len(data.labels), generator=order).split(setting.batch):
            loss = F.cross_entropy(model(data.images[batch]), data.labels[batch])
            weight = budget.lam if budget else lam
            optimizer.zero_grad()
            (loss + weight * sn.penalty(model)).backward()
            optimizer.step()
            took += 1
            if budget:
                budget.step()
                reached = took if budget.reached and reached is None else reached
            gc.step()
    seconds = time.perf_counter() - start
    plain = sn.fold_filters(model.eval())
    with torch.no_grad():
        right = sum(
            int((plain(x).argmax(1) == y).sum())
            for x, y in zip(data.test_images.split(1000), data.test_labels.split(1000), strict=True)
        )
    return {
        "seed": seed,
        "target": target,
        "parameters": sum(p.numel() for p in plain.parameters()),
        "features": [alive for alive, _ in sn.features(model).values()],
        "accuracy": right / len(data.test_labels),
        "steps": steps,
        "reached_at": reached,
        "total_s": seconds,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--data", nargs="+", default=[s.data for s in SETTINGS])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--again", nargs="+", default=[], choices=["budget", "fixed lambda"], help="has new rows")
    parser.add_argument("--targets", nargs="*", type=int, help="besides the fixed lambdas' sizes")
    parser.add_argument("--out", default=rows.RESULTS)
    arguments = parser.parse_args()
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    done = {key: row for key, row in newest(arguments.out).items() if key[1] not in arguments.again}
    for setting in (s for s in SETTINGS if s.data in arguments.data):
        data = load(setting.data, arguments.data_dir)

        def run(case, provider, seed, setting=setting, data=data, **how):
            if (case, provider, seed) not in done:
                row = rows.make("budget", case, provider, "cpu", **train(setting, data, seed, **how))
                rows.append(row, arguments.out)
                done[case, provider, seed] = row
                print(case, provider, seed, row["target"], row["parameters"], row["accuracy"], flush=True)
            return done[case, provider, seed]

        name = f"MLP {setting.width}-{setting.width}, {setting.data}"
        for seed in seeds:
            for lam in setting.lams:
                case = f"{name}, size of lambda {lam:g}"
                size = run(case, "fixed lambda", seed, lam=lam)["parameters"]
                run(case, "budget", seed, target=size)
        for seed in seeds:
            for target in setting.targets if arguments.targets is None else arguments.targets:
                run(f"{name}, {target} parameters", "budget", seed, target=target)
    compare(newest(arguments.out))


def newest(folder):
    found = [row for row in rows.read(folder) if row["family"] == "budget"]
    return {(row["case"], row["provider"], row["seed"]): row for row in found}  # of several the last


def compare(found):
    """A line per size: medians of both, and the difference of a seed's two runs: its mean and the error of that."""
    for case in dict.fromkeys(case for case, provider, _ in found if provider == "fixed lambda"):
        seeds = [seed for name, provider, seed in found if name == case and provider == "budget"]
        both = [[found[case, who, seed]["accuracy"] for seed in seeds] for who in ("budget", "fixed lambda")]
        if len(seeds) > 1:
            pairs = [a - b for a, b in zip(*both, strict=True)]
            error = statistics.stdev(pairs) / len(pairs) ** 0.5
            a, b = map(statistics.median, both)
            print(f"{case}: {len(seeds)} seeds, {a:.2%} budget, {b:.2%} fixed", end="; ")
            print(f"pairs differ by {statistics.mean(pairs):+.2%}, error {error:.2%}")


if __name__ == "__main__":
    main()
