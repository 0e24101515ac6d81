"""Two runs of one training step from the same state, masked and collected: how far apart are they?

The distance of two tensors is the largest difference over the largest entry of the expected one. Gradients and states whose
entries are all below 1e-4 of the model's largest (1e-8 for second moments) count against that: a bias in front of a batch norm
has a gradient that is nothing but rounding.
"""

import math
from dataclasses import dataclass

import torch

from shrinknets_fast.graph.results import tensors_in

SMALL = {"gradients": 1e-4, "exp_avg": 1e-4, "exp_avg_sq": 1e-8}
KINDS = ("output", "gradients", "state")


@dataclass
class Run:
    """outputs: in training and in evaluation mode; by parameter name: gradients, and Adam's two moments after a step."""

    outputs: list
    gradients: dict
    exp_avg: dict
    exp_avg_sq: dict


class Snapshot:
    """Parameters, buffers and an optimizer's state, to be played from once more. Gradients are dropped."""

    def __init__(self, model, optimizer):
        self.tensors = [(t, t.detach().clone()) for t in (*model.parameters(), *model.buffers())]
        for state in optimizer.state.values():
            self.tensors += [(t, t.clone()) for t in state.values() if torch.is_tensor(t)]

    @torch.no_grad()
    def restore(self):
        for tensor, before in self.tensors:
            tensor.copy_(before)


def loss_of(outputs):
    """A fixed generic function of all outputs: the mean of each, weighted by a cosine of the position."""
    total = 0.0
    for output in outputs:
        if output.is_floating_point() and output.numel():
            weight = torch.cos(torch.arange(output.numel(), dtype=output.dtype)).view(output.shape) + 0.5
            total = total + (weight * output).mean()
    return total


def forward(model, args, kwargs, training):
    torch.manual_seed(2)
    return [t for t in tensors_in(model.train(training)(*args, **kwargs)) if t.is_floating_point()]


def step(model, optimizer, args, kwargs):
    """One step in training mode; returns the :class:`Run`. A forward in evaluation mode sees the new statistics of norms."""
    optimizer.zero_grad()
    outputs = forward(model, args, kwargs, True)
    loss_of(outputs).backward()
    with torch.no_grad():
        outputs = [t.detach().clone() for t in [*outputs, *forward(model, args, kwargs, False)]]
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    optimizer.step()
    moments = {
        kind: {name: optimizer.state[p][kind].clone() for name, p in model.named_parameters() if p in optimizer.state}
        for kind in ("exp_avg", "exp_avg_sq")
    }
    return Run(outputs, gradients, **moments)


def distances(got, expected, positions=None):
    """{"output", "gradients", "state"}: the largest distance. positions: {parameter: where its entries were in ``expected``}."""
    found = {"output": max((distance(a, b) for a, b in zip(got.outputs, expected.outputs, strict=True)), default=0.0)}
    for kind, floor in SMALL.items():
        ours, theirs = getattr(got, kind), getattr(expected, kind)
        if ours.keys() != theirs.keys():
            return dict.fromkeys(KINDS, math.inf)
        least = floor * max((float(t.abs().max()) for t in theirs.values() if t.numel()), default=0.0)
        found[kind] = 0.0
        for name, tensor in theirs.items():
            if positions is not None:
                tensor = tensor.flatten()[positions[name].long().flatten()].view(positions[name].shape)
            found[kind] = max(found[kind], distance(ours[name], tensor, least))
    return {
        "output": found["output"],
        "gradients": found["gradients"],
        "state": max(found["exp_avg"], found["exp_avg_sq"]),
    }


def distance(got, expected, least=0.0):
    """Infinite where shapes differ or one of them is not finite where the other is."""
    if got.shape != expected.shape or not torch.equal(got.isfinite(), expected.isfinite()):
        return math.inf
    finite = expected.isfinite()
    got, expected = got[finite], expected[finite]
    if not expected.numel():
        return 0.0
    return float((got - expected).abs().max() / expected.abs().max().clamp_min(max(least, 1e-30)))


@torch.no_grad()
def perturb(model, args, kwargs):
    """Every parameter and every real input moves by one unit in its last place, up or down at random. Returns (args, kwargs)."""
    generator = torch.Generator().manual_seed(3)

    def moved(tensor):
        sign = torch.rand(tensor.shape, generator=generator, dtype=torch.float64) - 0.5
        return torch.nextafter(tensor, (sign * math.inf).to(tensor.dtype))

    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.copy_(
                torch.where(parameter > 0, moved(parameter), parameter) if parameter.dim() < 2 else moved(parameter)
            )
    real = lambda t: moved(t) if torch.is_tensor(t) and t.is_floating_point() else t  # noqa: E731
    return torch.utils._pytree.tree_map(real, (args, kwargs))
