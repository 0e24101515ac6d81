"""From a model to a settled network with its hubs, with every doubt about the user's code resolved by a trial."""

import torch

from ..errors import ShrinkError
from .hub import find_hubs
from .network import Network
from .plan import tensor_plans
from .rehearse import Rehearsal
from .trace import trace


def build(model, args, kwargs, theta_names):
    """(network, hubs, rehearsal). theta_names: {id(theta): the filter's dotted name}."""
    network = Network(trace(model, args, kwargs))
    hubs = find_hubs(network, theta_names)
    rehearsal = Rehearsal(model, args, kwargs)
    for axis, label in network.features.doubts:
        for hub in hubs:
            ids = hub.ids[torch.isin(hub.ids, axis.ids)]
            if len(ids) > 1 and not survives(model, network, rehearsal, ids[:1]):
                network.features.pin(network.features.axis(ids), f"would shift the positions that {label} picks")
    return network, hubs, rehearsal


def survives(model, network, rehearsal, ids):
    """Whether the model still runs, with outputs of the same shape, on a fake copy without these features."""
    gone = torch.zeros(network.features.count, dtype=torch.bool)
    gone[ids] = True
    try:
        rehearsal.run(model, tensor_plans(network, gone), "a trial")
    except ShrinkError:
        return False
    return True
