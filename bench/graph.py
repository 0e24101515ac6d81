"""How long the graph takes: tracing a model, planning a collection (the fake forward apart), the whole collection.

python -m bench.graph          appends rows to bench/results/graph.jsonl and prints them
"""

import time
import warnings

import torch

import shrinknets_fast as sn

from .families import kill
from .rows import append

MODELS = {"resnet50": (224, 5), "mobilenet_v2": (224, 5), "convnext_tiny": (224, 3)}  # image size, runs


def fresh(name, size):
    from torchvision import models

    torch.manual_seed(0)
    return getattr(models, name)(), torch.randn(1, 3, size, size)


def timed(call, *args):
    start = time.perf_counter()
    result = call(*args)
    return time.perf_counter() - start, result


def measure(name, size, runs):
    times = {"add_filters": [], "trace": [], "plan": [], "collect": []}
    for _ in range(runs + 1):
        model, x = fresh(name, size)
        seconds = {"add_filters": timed(sn.add_filters, model, x)[0]}
        seconds["trace"], gc = timed(sn.GarbageCollector, model, x)
        kill(model)
        seconds["plan"], _ = timed(gc.plan)
        seconds["collect"], _ = timed(gc.collect)
        for key, value in seconds.items():
            times[key].append(value)
    for key, values in times.items():
        yield append("graph", f"{name} {key}", "shrinknets_fast", values[1:])  # the first run warms torch.export up


def main():
    for name, (size, runs) in MODELS.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for row in measure(name, size, runs):
                print(
                    f"{row['case']:<30} {row['median_ms']:10.1f} ms  ({row['p20_ms']:.1f} to {row['p80_ms']:.1f})",
                    flush=True,
                )


if __name__ == "__main__":
    main()
