"""How long the plain network takes: at the widths that training began with, and at those it found."""

import copy

import torch

from ..filters import named_filters
from ..folding import folded
from ..placement import replace
from .models import build

SECONDS = 0.1  # of measuring, for each network and batch size


@torch.no_grad()
def latency(arguments, image_shape, small, device):
    """{"batch N": {"before": ms, "after": ms}}: medians of forward passes on ``device``, for N = 1 and the training's batch.

    before: a fresh network of the widths in ``arguments``, of plain layers. after: ``small``, which does not change.
    """
    networks = {"before": unfiltered(build(arguments, image_shape)), "after": copy.deepcopy(small)}
    networks = {name: network.eval().to(device) for name, network in networks.items()}
    found = {}
    for size in sorted({1, arguments.batch_size}):
        images = torch.randn(size, *image_shape, device=device)
        found[f"batch {size}"] = {name: milliseconds(network, images) for name, network in networks.items()}
    return found


def unfiltered(model):
    """The plain network of the same widths; in place, layer by layer, because there may be no memory for a second one."""
    for module in named_filters(model).values():
        replace(model, module, folded(module))
    return model


def milliseconds(network, images):
    from torch.utils.benchmark import Timer  # loads what builds C++, which speaks where it finds a toolkit and no GPU

    names = {"network": network, "images": images}
    timer = Timer("network(images)", globals=names, num_threads=torch.get_num_threads())
    return round(1e3 * timer.blocked_autorange(min_run_time=SECONDS).median, 4)
