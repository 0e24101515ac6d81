"""A whole collection, optimizer state included, against one training step of the same model before it.

The authors' benchmark: an MLP with filters behind four hidden layers, Adam, batch 60. Beside ours: index_select with optimizer
state (the authors' algorithm) and Torch-Pruning with a fresh optimizer, whose state is lost; both drop the gradients, ours does
not.
Also how long our parts take: trace (once per model), plan, apply, and a look that finds nothing (once per step).
"""

import gc
from functools import cached_property
from importlib.util import find_spec

import torch

import shrinknets_fast as sn

from .. import adapters
from ..counters import counted, launches, synchronisations
from ..memory import peak_rise
from ..models import kill, mlp, swapped, unfused
from ..registry import OURS, Case, Provider, family
from ..rivals import TorchPruning, collect_by_index_select, folded_plain
from ..training_step import Step, adam, parameter_bytes, resident_bytes

BATCH, DEPTH = 60, 4
SHARES = (0.01, 0.5)


@family
def collection(options):
    width = 1000 if options.quick else 10000
    name = f"mlp 784-{width}x{DEPTH}-10"
    for share in SHARES:
        work = Work(width, share, options)
        for part in ("collect", "apply"):
            fields = {"dead": share, "part": part}
            yield Case(
                f"{name}, {share:.0%} dead: {part}", getattr(work, part), calls=1, least=4, host=True, fields=fields
            )
    for part in ("trace", "plan", "look"):
        yield Case(f"{name}: {part}", lambda w=work, p=part: w.of_ours(p), calls=1, host=True, fields={"part": part})


class Work:
    def __init__(self, width, share, options):
        self.width, self.share, self.device = width, share, options.device

    @cached_property
    def batch(self):
        x = torch.randn(BATCH, 784, device=self.device)
        return x, torch.randint(10, (BATCH,), device=self.device)

    def trained(self, make=lambda model: model, fused=True):
        """(model, optimizer) after one step, so that gradients and state exist; then a share of the features dies."""
        model = mlp(self.width, DEPTH, init=1.0, device=self.device)
        kill(model, self.share)
        model = make(model)
        optimizer = adam(model.parameters(), fused, lr=1e-9)
        Step(model, [self.batch], optimizer)()
        return model, optimizer

    def ours(self, _=0):
        model, optimizer = self.trained()
        return model, optimizer, sn.GarbageCollector(model, self.batch[0][:2], optimizers=optimizer), self.logits(model)

    def authors(self, _=0):
        model, optimizer = self.trained(lambda model: swapped(model, unfused))
        return model, optimizer, None, self.logits(model)

    def torch_pruning(self, _=0):
        dead = []

        def make(model):
            dead.extend((~m.alive).nonzero().flatten().tolist() for m in sn.filters.named_filters(model).values())
            return folded_plain(model)

        model, optimizer = self.trained(make)
        layers = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
        pruning = TorchPruning(model, self.batch[0][:2], dict(zip(layers, dead, strict=False)))
        return model, optimizer, pruning, self.logits(model)

    def logits(self, model):
        with torch.no_grad():
            return model(self.batch[0])

    @cached_property
    def step(self):
        """The yardstick: a training step of the model before its collection, with Adam as torch has it by default."""
        model, optimizer = self.trained(fused=False)
        return Step(model, [self.batch], optimizer)

    @cached_property
    def fused_step(self):
        """The same with a leaner optimizer, on the same model and state: they take 5 GB."""
        optimizer = adam(self.step.model.parameters(), lr=1e-9)
        optimizer.state = self.step.optimizer.state
        return Step(self.step.model, [self.batch], optimizer)

    def copies(self):
        """copy_ of as many bytes as a collection must move at least, through one pair of tensors."""
        left = (1 - self.share) * self.width
        sizes = [784 * left, *[left * left] * (DEPTH - 1)]  # the last layer's are too few to count
        source, target = (torch.ones(self.width, self.width, device=self.device).flatten() for _ in range(2))
        sizes = [int(size) for size in sizes for _ in range(4)]  # weight, gradient and two moments

        def copy(_):
            for size in sizes:
                target[:size].copy_(source[:size])

        return Provider(copy, "bound", checked=False)

    def collect(self):
        providers = {
            OURS: self.provider(collect_ours, self.ours, "ours"),
            "training step": Provider(self.step, "plain", checked=False, more=self.sizes),
            "training step, fused Adam": Provider(self.fused_step, "yardstick", checked=False),
            "copy_ of what survives": self.copies(),
            "index_select with state": self.provider(collect_authors, self.authors),
            "Torch-Pruning, fresh optimizer": "torch-pruning is not installed",
        }
        if find_spec("torch_pruning"):
            providers["Torch-Pruning, fresh optimizer"] = self.provider(collect_pruning, self.torch_pruning)
        return providers, self.check

    def provider(self, run, prepare, role="rival"):
        return Provider(run, role, prepare, more=lambda: self.costs(prepare, run))

    def apply(self):
        def prepare(_=0):
            model, optimizer, collector, logits = self.ours()
            return model, optimizer, adapters.planned(collector), logits

        def run(state):
            state[2]()
            return state

        yardstick = Provider(self.step, "plain", checked=False)
        ours = adapters.why_no_apply() or Provider(run, "ours", prepare)
        return {OURS: ours, "training step": yardstick}, self.check

    def of_ours(self, part):
        """trace, plan or look, on one model that stays as it is."""
        model, optimizer, collector, _ = self.ours()
        x = self.batch[0][:2]
        if part == "look":
            collector.collect()
        runs = {
            "trace": lambda _: sn.GarbageCollector(model, x),
            "plan": lambda _: collector.plan(),
            "look": lambda _: collector.step() is None,
        }
        more = lambda: counted(lambda: runs[part](0), self.device) if part == "look" else {}  # noqa: E731
        yardstick = Provider(Step(model, [self.batch], optimizer), "plain", checked=False)
        return {OURS: Provider(runs[part], "ours", more=more), "training step": yardstick}, happened

    def sizes(self):
        model, optimizer = self.step.model, self.step.optimizer
        rise = peak_rise(lambda _: self.step(), self.device, self.step)
        sizes = {"parameter_bytes": parameter_bytes(model), "resident_bytes": resident_bytes(model, optimizer)}
        return {"rise_bytes": rise, **sizes}

    def costs(self, prepare, run):
        """Peak memory; on a GPU also synchronisations and launches, each on a fresh model."""
        gc.collect()  # models of earlier runs, in cycles: at full size each takes 5 GB
        found = {"rise_bytes": peak_rise(run, self.device, prepare)}
        for key, count in (
            {"syncs": synchronisations, "launches": launches}.items() if self.device.type == "cuda" else ()
        ):
            state = prepare()
            found[key] = count(lambda s=state: run(s))
        return found

    def check(self, name, state):
        """The network is smaller, its output is the same, and the optimizer's state fits the parameters it belongs to."""
        model, optimizer, _, before = state
        size = max(m.weight.shape[0] for m in model.modules() if isinstance(m, torch.nn.Linear))
        fits = all(
            v.shape in (p.shape, torch.Size()) for p in model.parameters() for v in optimizer.state.get(p, {}).values()
        )
        kept = "fresh" in name or all(p in optimizer.state for p in model.parameters())
        after = self.logits(model)
        same = float((after - before).abs().max()) <= 1e-4 * float(before.abs().max())
        return size == self.width - round(self.share * self.width) and fits and kept and same


def collect_ours(state):
    state[2].collect()
    return state


def collect_authors(state):
    collect_by_index_select(*state[:2])
    return state


def collect_pruning(state):
    model, _, pruning, before = state
    return model, pruning.collect(adam), None, before


def happened(name, result):
    return bool(result)
