"""Two processes train one model: each case is called by both, and returns what test_distributed.py compares with one process."""

import functools

import torch
from rank_training import Convolutional, Perceptron, Residual, Unused, alone, digits, rank, setting, together
from torch import distributed
from torch.nn.parallel import DistributedDataParallel as DDP

import shrinknets_fast as sn


def perceptron():
    return together(Perceptron, 30)


def convolutional():
    return together(Convolutional, 40)


def close_a_branch(step, model):
    if step == 15:
        with torch.no_grad():
            model.blocks[0].branch[1].theta.zero_()


def residual():
    return together(Residual, 30, at=close_a_branch)


def found():
    return together(Perceptron, 30, given=False)


def bucket_view():
    return together(Perceptron, 40, gradient_as_bucket_view=True)


def static_graph():
    return together(Perceptron, 30, static_graph=True)


def unused_parameters():
    return together(Unused, 30, find_unused_parameters=True)


def accumulated():
    return together(Perceptron, 40, accumulate=2)


def accumulated_in_views():
    return together(Perceptron, 40, accumulate=2, gradient_as_bucket_view=True)


def collect_between(step, turn, model, gc):
    """Features die while gradients of half a step wait."""
    if turn == 0 and step % 10 == 5:
        with torch.no_grad():
            for theta in (model[0].theta, model[2].theta):
                theta[step % 7] = 0
        gc.collect()


def pending():
    return together(Perceptron, 40, accumulate=2, between=collect_between)


def pending_in_views():
    return together(Perceptron, 40, accumulate=2, between=collect_between, gradient_as_bucket_view=True)


def small_buckets():
    return together(Perceptron, 40, bucket_cap_mb=0.005)


def communication_hook():
    """It is called in every backward."""
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

    called, expected = set(), []

    def hook(state, bucket):
        called.add(len(expected))
        return default_hooks.allreduce_hook(state, bucket)

    def note(step, turn, model, gc):
        expected.append(step)

    found = together(Perceptron, 40, hook=lambda w: w.register_comm_hook(None, hook), between=note, compare=False)
    assert called == set(expected) == set(range(40))
    if rank() == 0:
        found["alone"] = alone(Perceptron, 40)
    return found


def builtin_hook():
    """Every gradient has been through half precision, at the end as at the beginning: (share of such entries, collections)"""
    model, wrapper, optimizer, gc, train = setting()
    wrapper._register_builtin_comm_hook(distributed.BuiltinCommHookType.FP16_COMPRESS)
    shares, removed = [], []
    for _ in range(3):
        with torch.no_grad():
            model[0].theta[:5] = 0
        removed.append(sum(gc.collect().removed.values()))
        x = digits(False)[0]
        wrapper(x[rank() : 20 : 2]).square().mean().backward()
        gradients = torch.cat([p.grad.flatten() for p in model.parameters()])
        shares.append(float((gradients.half().double() == gradients).double().mean()))
        optimizer.zero_grad()
    return shares, removed


def trim_on_the_first(step, turn, model, gc):
    """Before it writes a checkpoint, say."""
    if rank() == 0 and step % 10 == 9:
        gc.trim(waste=0)


def trimmed_on_one_rank():
    return together(Perceptron, 40, between=trim_on_the_first, find_unused_parameters=True)


def compiled():
    return together(Perceptron, 40, compiled="outside")


def compiled_inside():
    return together(Perceptron, 40, compiled="inside")


def uneven_norm():
    """A synchronised norm whose ranks have other numbers of rows: (output, gradients, statistics), and those of one process."""
    torch.manual_seed(0)
    norm = sn.FilteredSyncBatchNorm(3, dtype=torch.float64)
    one = sn.FilteredBatchNorm2d(3, dtype=torch.float64)
    one.load_state_dict(norm.state_dict())
    x, weights = torch.randn(7, 3, 4, 2, dtype=torch.float64), torch.randn(7, 3, 4, 2, dtype=torch.float64)
    rows = slice(0, 5) if rank() == 0 else slice(5, 7)
    own, whole = x[rows].clone().requires_grad_(), x.clone().requires_grad_()
    found = []
    for layer, inputs, w in ((norm, own, weights[rows]), (one, whole, weights)):
        out = layer(inputs)
        (out * w).sum().backward()
        gradients = [p.grad.clone() for p in layer.parameters()]
        if layer is norm:
            for g in gradients:
                distributed.all_reduce(g)
        keep = slice(None) if layer is norm else rows
        layer.eval()
        later = layer(inputs.detach())[keep]
        found.append([out.detach()[keep], inputs.grad[keep], *gradients, *layer.buffers(), later.detach()])
    return found


def power_sgd():
    """(what ``together`` returns, [(iterations, buckets with an error kept) before and after a collection], and at the end)"""
    from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook as power

    state = power.PowerSGDState(None, matrix_approximation_rank=2, start_powerSGD_iter=4, min_compression_rate=1)
    seen = []

    def look(step, turn, model, gc):
        if step == 20:
            seen.append((state.iter, len(state.error_dict)))
            with torch.no_grad():
                model[0].theta[:8] = 0
            gc.collect()
            seen.append((state.iter, len(state.error_dict)))

    hook = functools.partial(DDP.register_comm_hook, state=state, hook=power.powerSGD_hook)
    found = together(Perceptron, 40, hook=hook, between=look, min_dead=1.0, compare=False)
    return found, seen, (state.iter, len(state.error_dict))


def trainer():
    """The command line's. The last batch of an epoch has one image: the second rank has none of it."""
    from shrinknets_fast.training.processes import Alone, Several

    return {"all": trained(Several()), "alone": trained(Alone()) if rank() == 0 else None}


def trained(world):
    import argparse

    from shrinknets_fast.training import data, loop, models, state
    from shrinknets_fast.training.arguments import add_arguments, with_defaults
    from shrinknets_fast.training.progress import Progress

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    options = "--width 24 --lr 1e-2 --lam 3e-2 --epochs 4 --batch-size 32".split()
    arguments = with_defaults(parser.parse_args(options))
    images, labels, *test = data.load("digits", None)
    parts = data.Data(images[:257].double(), labels[:257], test[0].double(), test[1])
    torch.manual_seed(0)
    trainer = loop.Trainer(models.build(arguments, parts.images.shape[1:]).double(), parts, arguments, world)
    trainer.run(Progress(NoBar, 1, shown=False), False, lambda: None)
    found = state.of(trainer)
    return {name: found[name] for name in ("model", "optimizer", "history")}


class NoBar:
    def __init__(self, **options):
        self.set_postfix_str = self.update = lambda *args, **options: None
