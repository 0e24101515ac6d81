"""torchvision's classifiers, one of each family: filters, random deaths, removal by this package and by Torch-Pruning.

    python -m bench.zoo [NAME ...]         prints one row per family; with --write, makes docs/torchvision.md

Random weights, small images, float64, evaluation and training mode. Torch-Pruning (extra ``bench``) is given the same model with
its filters folded, dead features still in place as exact zeros, and is asked to remove the same ones; it leaves optimizers alone.
"""

import argparse
import copy
import re
import warnings
from collections import Counter
from pathlib import Path

import torch
from torch import nn

import shrinknets_fast as sn
from shrinknets_fast.filters import named_filters, thetas
from shrinknets_fast.folding import folded
from shrinknets_fast.graph.results import tensors_in
from shrinknets_fast.graph.verdict import judge

# name -> (image size, arguments)
FAMILIES = {
    "resnet18": (64, {}),
    "resnext50_32x4d": (64, {}),
    "wide_resnet50_2": (64, {}),
    "vgg11_bn": (32, {}),
    "alexnet": (64, {}),
    "squeezenet1_1": (64, {}),
    "densenet121": (64, {}),
    "mobilenet_v2": (64, {}),
    "mobilenet_v3_small": (64, {}),
    "efficientnet_b0": (64, {}),
    "efficientnet_v2_s": (64, {}),
    "mnasnet0_5": (64, {}),
    "shufflenet_v2_x0_5": (64, {}),
    "regnet_y_400mf": (64, {}),
    "inception_v3": (299, {"init_weights": False}),
    "googlenet": (64, {"init_weights": False}),
    "convnext_tiny": (64, {}),
    "swin_t": (64, {}),
    "swin_v2_t": (64, {}),
    "vit_b_32": (64, {"image_size": 64}),
    "maxvit_t": (224, {}),
}
DEAD = 0.35


def make(name):
    """(model in float64 without randomness, example images). Batch norms get generic statistics, or mistakes would cancel."""
    from torchvision import models

    size, arguments = FAMILIES[name]
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = getattr(models, name)(num_classes=10, **arguments).double()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Dropout) or type(module).__name__ == "StochasticDepth":
                module.p = 0.0
            elif isinstance(module, nn.modules.batchnorm._NormBase):
                for tensor, low in (
                    (module.weight, 0.5),
                    (module.bias, -0.5),
                    (module.running_mean, -0.5),
                    (module.running_var, 0.5),
                ):
                    tensor.copy_(low + torch.rand(tensor.shape, dtype=tensor.dtype))
    return model, torch.randn(2, 3, size, size, dtype=torch.float64)


@torch.no_grad()
def kill(model, share=DEAD):
    """A random share of every filter dies, never all of one."""
    generator = torch.Generator().manual_seed(0)
    for theta in thetas(model).values():
        count = min(max(1, int(share * theta.numel())), theta.numel() - 1)
        theta[torch.randperm(theta.numel(), generator=generator)[:count]] = -0.1


@torch.no_grad()
def outputs(model, x, modes=(True, False)):
    """All output tensors, by mode; the model is left as it was."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    found = []
    for training in modes:
        found.append(tensors_in(model.train(training)(x)))
        for name, value in model.state_dict().items():
            value.copy_(state[name])
    return found


def difference(after, before):
    """The largest difference of an output, relative to the output's largest entry."""
    pairs = [(a, b) for x, y in zip(after, before, strict=True) for a, b in zip(x, y, strict=True)]
    return max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-30)) for a, b in pairs)


def weight_count(model):
    """Weights and biases without the filters."""
    return sum(p.numel() for name, p in model.named_parameters() if name.rpartition(".")[2] != "theta")


def kept(gc):
    """{short reason: features} of what could not leave even if every filter were dead."""
    reading = gc._reading
    everything = {key: torch.ones_like(mask) for key, mask in reading.watch.masks().items()}
    verdict = judge(reading.network, everything, idle_too=False)
    reasons = Counter()
    for hub in reading.hubs:
        for index in verdict.blame[hub.ids[~verdict.removable[hub.ids]]].tolist():
            reason = verdict.reasons[index] if index >= 0 else "nothing reads it"
            reasons[re.sub(r"[\w.]+ \((\w+)\)", r"\1", reason)] += 1
    return reasons


def torch_pruning(model, x, removed):
    """What Torch-Pruning makes of the same removals: "exact", the difference of its output, or how it fails.

    removed: {filter's name: positions}.
    """
    import torch_pruning as tp

    plain = copy.deepcopy(model).eval()
    for name, module in named_filters(plain).items():
        if type(module) is sn.Filter:
            return f"not asked: {name} is a stand-alone filter"
        folded(module)
    before = outputs(plain, x, modes=(False,))
    prune = {
        nn.Linear: tp.prune_linear_out_channels,
        nn.Conv2d: tp.prune_conv_out_channels,
        nn.BatchNorm2d: tp.prune_batchnorm_out_channels,
    }
    try:
        graph = tp.DependencyGraph().build_dependency(plain, x, verbose=False)
        for name, positions in removed.items():
            module = plain.get_submodule(name)
            if module not in graph.module2node:  # an auxiliary head, which evaluation mode does not run
                continue
            group = graph.get_pruning_group(module, prune[type(module)], positions)
            if not graph.check_pruning_group(group):
                return f"refuses {name}"
            group.prune()
        worst = difference(outputs(plain, x, modes=(False,)), before)
    except Exception as error:
        return f"fails: {type(error).__name__}: {str(error).splitlines()[0][:80]}"
    return f"exact ({worst:.0e})" if worst < 1e-10 else f"**differs by {worst:.1e}**"


def measure(name, rival=False):
    """One row: {family, removed, before, after, difference, kept, torch_pruning}, and the collector for further checks."""
    model, x = make(name)
    plain = outputs(model, x)
    sn.add_filters(model, x)
    placed = difference(outputs(model, x), plain)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    gc = sn.GarbageCollector(model, x, optimizers=optimizer)
    kill(model)
    before, weights = outputs(model, x), weight_count(model)
    plan = gc.plan()
    removed = {h.name: sorted(set(range(h.total)) - set(h.kept.tolist())) for h in plan.hubs if h.removed}
    said = torch_pruning(model, x, removed) if rival else ""
    collection = gc.collect()
    row = {
        "family": name,
        "removed": sum(collection.removed.values()),
        "before": weights,
        "after": weight_count(model),
        "placed": placed,
        "difference": difference(outputs(model, x), before),
        "kept": "; ".join(f"{count} {reason}" for reason, count in kept(gc).most_common(3)),
        "torch_pruning": said,
    }
    return row, model, x, optimizer, gc


HEADER = """\
# torchvision's families

One model of each family: `add_filters` (inner filters only), {share:.0%} of every filter's features killed at random, one
collection; float64, random weights with generic batch-norm statistics, outputs compared in training and in evaluation mode. Made
by `python -m bench.zoo --write` (torch {torch}, Torch-Pruning 1.6.1).

The last column is Torch-Pruning asked to remove the same features, which are exact zeros, from the same model in evaluation mode.
"kept" counts the features that could not leave even if all filters were dead, by the op to blame; trunks stay here because
`residual="tied"` was not asked for.

| family | features removed | parameters before | after | largest difference | Torch-Pruning | kept, and why |
|---|---|---|---|---|---|---|
"""


def as_markdown(row):
    sizes = f"{row['removed']:,} | {row['before']:,} | {row['after']:,} | {row['difference']:.0e}"
    return f"| {row['family']} | {sizes} | {row['torch_pruning']} | {row['kept']} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(FAMILIES), metavar="NAME")
    parser.add_argument("--write", action="store_true", help="make docs/torchvision.md")
    arguments = parser.parse_args()
    lines = []
    for name in arguments.names:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            lines.append(as_markdown(measure(name, rival=True)[0]))
        print(lines[-1], flush=True)
    if arguments.write:
        text = HEADER.format(share=DEAD, torch=torch.__version__) + "\n".join(lines) + "\n"
        Path(__file__).parents[1].joinpath("docs/torchvision.md").write_text(text)


if __name__ == "__main__":
    main()
