"""Where a filter does good: the modules after which a dead feature would be zero for every reader."""

from dataclasses import dataclass

import torch

from .verdict import judge


@dataclass(frozen=True)
class Place:
    """Modules that get a filter along ``dim`` of their output, with ``size`` features. Several share one theta."""

    modules: tuple
    dim: int
    size: int


@dataclass(frozen=True)
class Candidate:
    module: str
    dim: int
    outputs: tuple  # one value per mode

    @property
    def ids(self):
        return self.outputs[0].axes[self.dim].ids


def candidates(network, modules, feature_dim):
    """Modules that are called once, in the order of the forward, with features along one dimension of their output.

    modules: {name: module} to consider; feature_dim(module, output) names the dimension, or None.
    """
    for name, calls in network.outputs.items():
        if name not in modules or any(len(made) != 1 for made in calls):
            continue
        outputs = tuple(made[0] for made in calls)
        if any(value.shape != outputs[0].shape for value in outputs):
            continue
        dim = feature_dim(modules[name], outputs[0])
        if dim is not None and all(value.axes[dim] is not None for value in outputs):
            yield Candidate(name, dim, outputs)


def find_places(network, found, covered, tied):
    """The :class:`Place` s for filters among the candidates ``found``.

    covered: mask over features that have a filter already. tied: also where only several modules together can make a feature
    zero, as the writers of a residual trunk: they share one theta.
    """
    places, left = [], {}
    for candidate in found:
        if bool(covered[candidate.ids].any()):
            continue
        if works(network, [candidate]):
            covered[candidate.ids] = True
            places.append(Place((candidate.module,), candidate.dim, len(candidate.ids)))
        else:
            left.setdefault(tuple(candidate.ids.tolist()), []).append(candidate)
    for writers in left.values() if tied else ():
        if len(writers) < 2 or bool(covered[writers[0].ids].any()) or not works(network, writers):
            continue
        for writer in list(writers):  # a convolution before its batch norm is not needed
            others = [w for w in writers if w is not writer]
            if works(network, others):
                writers = others
        covered[writers[0].ids] = True
        places.append(Place(tuple(w.module for w in writers), writers[0].dim, len(writers[0].ids)))
    return places


def works(network, writers):
    """Whether every feature could leave if these modules' outputs were zero there."""
    if not writers:
        return False
    supposed = {value: writer.dim for writer in writers for value in writer.outputs}
    return bool(judge(network, {}, supposed).removable[torch.cat([w.ids for w in writers])].all())
