"""One step of training, the same for every provider of the benchmarks."""

import torch
import torch.nn.functional as F

from .memory import peak_rise


def adam(parameters, fused=True, **rates):
    return torch.optim.Adam(parameters, fused=fused, **rates)


class Step:
    """step(k): zero_grad, forward, loss, backward, optimizer; batch k of ``batches``. Returns the loss.

    penalty(model): added to the loss. autocast: to bfloat16.
    """

    def __init__(self, model, batches, optimizer, penalty=None, autocast=False):
        self.model, self.batches, self.optimizer, self.penalty = model, batches, optimizer, penalty
        self.autocast = autocast

    def __call__(self, k=0):
        loss = self.gradients(k)
        self.optimizer.step()
        return loss

    def gradients(self, k=0):
        x, y = self.batches[k % len(self.batches)]
        self.optimizer.zero_grad()
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.autocast):
            loss = total = F.cross_entropy(self.model(x), y)
        if self.penalty is not None:
            total = loss + self.penalty(self.model)
        total.backward()
        return loss.detach()


def unfused_penalty(model):
    """``sum max(0, theta)`` over the unfused filters of ``model``."""
    return sum(p.clamp_min(0).sum() for name, p in model.named_parameters() if name.rpartition(".")[2] == "theta")


def resident_bytes(model, optimizer):
    """Memory of parameters, buffers, gradients and optimizer state: whole storages, with what a collection left unused."""
    tensors = [*model.parameters(), *model.buffers()]
    tensors += [p.grad for p in model.parameters() if p.grad is not None]
    tensors += [v for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor)]
    storages = {s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in tensors)}
    return sum(storages.values())


def peak_bytes(step, device):
    """The most that is allocated during forward and backward, parameters and optimizer state included."""
    rise = peak_rise(lambda _: step.gradients(), device, step.gradients)
    return resident_bytes(step.model, step.optimizer) + rise


def parameter_bytes(model):
    return sum(p.numel() * p.element_size() for p in model.parameters())
