"""How long the graph takes: adding filters, tracing, planning a collection, the whole collection, on torchvision's models."""

import torch

import shrinknets_fast as sn

from ..models import kill
from ..registry import OURS, Case, Provider, family, needed

MODELS = {"resnet50": 224, "mobilenet_v2": 224, "convnext_tiny": 224}
QUICK = {"resnet18": 64}
DEAD = 0.35


@family
def graph(options):
    for name, side in (QUICK if options.quick else MODELS).items():
        for part in PARTS:
            make = lambda n=name, s=side, p=part: provider(n, s, p, options.device)  # noqa: E731
            yield Case(f"{name} {part}", make, calls=1, least=4, host=True)


def provider(name, side, part, device):
    models = needed("torchvision.models")

    def fresh(_):
        x = torch.randn(1, 3, side, side, device=device)
        model = getattr(models, name)().to(device)
        if part == "add_filters":
            return model, x
        sn.add_filters(model, x)
        if part == "trace":
            return model, x
        gc = sn.GarbageCollector(model, x)
        kill(model, DEAD)
        return gc, x

    return {OURS: Provider(PARTS[part], "ours", fresh)}, lambda _, result: bool(result)


PARTS = {
    "add_filters": lambda state: sn.add_filters(*state),
    "trace": lambda state: sn.GarbageCollector(*state),
    "plan": lambda state: state[0].plan(),
    "collect": lambda state: state[0].collect().removed,
}
