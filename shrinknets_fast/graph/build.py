"""From a model to a settled network with its hubs, with every doubt about the user's code resolved by a trial."""

import torch

from ..errors import ShrinkError
from .hub import find_hubs
from .network import Network
from .plan import tensor_plans
from .rehearse import Rehearsal
from .trace import trace
from .verdict import judge


def build(model, args, kwargs, theta_names):
    """(network, hubs, rehearsal). theta_names: {id(theta): the filter's dotted name}."""
    network = Network(trace(model, args, kwargs))
    hubs = find_hubs(network, theta_names)
    rehearsal = Rehearsal(model, args, kwargs)
    tried = {}  # feature -> why the model does not survive its removal, or None
    free = could_leave(network, theta_names)
    for axis, _ in network.features.doubts:
        for hub in hubs:
            ids = hub.ids[torch.isin(hub.ids, axis.ids) & free[hub.ids]]
            if len(ids) < 2:
                continue
            first = int(ids[0])
            if first not in tried:
                tried[first] = failure(model, network, rehearsal, ids[:1])
            if tried[first] is not None:
                network.features.pin(network.features.axis(ids), tried[first])
    return network, hubs, rehearsal


def could_leave(network, theta_names):
    """Mask over features: those worth a trial. Without filters, as when some are to be added, all that nothing pins."""
    everything = {
        key: torch.ones(b.tensor.numel(), dtype=torch.bool) for key, b in network.bound.items() if key in theta_names
    }
    if everything:
        return judge(network, everything).removable
    free = torch.ones(network.features.count, dtype=torch.bool)
    for axis, _ in network.features.pins:
        free[axis.ids] = False
    return free


def failure(model, network, rehearsal, ids):
    """The error if a fake copy without these features does not run, or does not do the same; else None."""
    gone = torch.zeros(network.features.count, dtype=torch.bool)
    gone[ids] = True
    try:
        rehearsal.try_once(model, tensor_plans(network, gone), "one feature less")
    except ShrinkError as error:
        return str(error)
    return None
