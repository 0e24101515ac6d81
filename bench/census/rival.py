"""Torch-Pruning asked to remove 40% of everything it finds, from the same model as it comes: its magnitude pruner, no hints."""

import contextlib
import signal

import torch

from shrinknets_fast.graph.results import tensors_in

from ..registry import Unavailable, needed
from .words import line

SECONDS = 20


def torch_pruning(model, args, kwargs, ratio):
    """{"removed": share of the parameters, "failed": None or one line}. None where Torch-Pruning is not installed.

    Layers whose output the model returns are left out, as its documentation asks. It fails where the pruner raises, the pruned
    model does not run, or its outputs have other shapes.
    """
    try:
        tp = needed("torch_pruning")
    except Unavailable:
        return None
    try:
        with limited(SECONDS):
            return pruned(tp, model, args, kwargs, ratio)
    except Exception as error:
        return {"removed": None, "failed": line(error)[:160]}


@contextlib.contextmanager
def limited(seconds):
    """Raises TimeoutError inside after so much of this process's time: some graphs take it forever."""

    def stop(*signal):
        raise TimeoutError(f"more than {seconds} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def pruned(tp, model, args, kwargs, ratio):
    before = sum(p.numel() for p in model.parameters())
    last, shapes = last_layers(model, args, kwargs)
    pruner = tp.pruner.BasePruner(
        model,
        args,
        forward_fn=lambda model, args: model(*args, **kwargs),
        importance=tp.importance.MagnitudeImportance(p=2),
        pruning_ratio=ratio,
        ignored_layers=last,
        output_transform=tensors_in,
    )
    pruner.step()
    with torch.no_grad():
        after = [tuple(t.shape) for t in tensors_in(model(*args, **kwargs))]
    if after != shapes:
        return {"removed": None, "failed": f"the outputs change from {shapes[0]} to {after[0] if after else None}"}
    return {"removed": 1 - sum(p.numel() for p in model.parameters()) / before, "failed": None}


def last_layers(model, args, kwargs):
    """(modules whose own output is one of the model's, and the last one with parameters; shapes of the model's outputs)"""
    made = []

    def note(module, inputs, output):
        made.append((module, output))

    handles = [module.register_forward_hook(note) for module in model.modules() if not list(module.children())]
    try:
        with torch.no_grad():
            outputs = tensors_in(model(*args, **kwargs))
    finally:
        for handle in handles:
            handle.remove()
    where = {t.data_ptr() for t in outputs}
    last = [m for m, t in made if torch.is_tensor(t) and t.data_ptr() in where]
    last += [m for m, _ in made if list(m.parameters())][-1:]
    return last, [tuple(t.shape) for t in outputs]
