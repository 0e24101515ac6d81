"""One training step (forward, loss, penalty, backward, Adam) of an MLP, LeNet-5 and ResNet-18, and its peak memory."""

import copy

import torch

import shrinknets_fast as sn

from ..closeness import FLIPS, as_close_as
from ..compiling import compiled
from ..models import lenet5, mlp, plain, resnet18, swapped, unfused, xavier
from ..registry import OURS, Case, Provider, family
from ..timing import rotated
from ..training_step import Step, adam, peak_bytes, unfused_penalty

LAM = 1e-6
RATE = 1e-9  # so small that nothing dies and the work stays the same
MODELS = ("mlp", "lenet5", "resnet18")


@family
def steps(options):
    cuda = options.device.type == "cuda"
    for name in MODELS:
        for kind in ("float32", "bfloat16 autocast") if cuda and not options.quick else ("float32",):
            work = lambda n=name, k=kind: Work(n, k, options).case()  # noqa: E731
            sizes, batch = describe(name, options)
            yield Case(f"{sizes}, batch {batch}{'' if kind == 'float32' else ', ' + kind}", work)


def describe(name, options):
    """(the case's name, batch size)"""
    cuda, quick = options.device.type == "cuda" and not options.quick, options.quick
    if name == "mlp":
        return f"mlp 784-{width_of(quick)}-{width_of(quick)}-10", 256
    if name == "lenet5":
        return f"LeNet-5 50-50-{500 if quick else 5000}", 32 if quick else 256
    return f"ResNet-18 at {side_of(options)}x{side_of(options)}", 128 if cuda else 8 if quick else 16


def width_of(quick):
    return 500 if quick else 4000


def side_of(options):
    return (
        224 if options.device.type == "cuda" and not options.quick else 64
    )  # at 32 its last batch norms see one pixel


class Work:
    def __init__(self, name, kind, options):
        self.options, self.device, self.autocast = options, options.device, "autocast" in kind
        quick, batch = options.quick, describe(name, options)[1]
        make = {
            "mlp": lambda: xavier(mlp(width_of(quick), 2, device=self.device)),
            "lenet5": lambda: xavier(lenet5(width=500 if quick else 5000, device=self.device)),
            "resnet18": lambda: resnet18(side_of(options), self.device),
        }[name]
        self.model = make()
        shape = (batch, 3, side_of(options), side_of(options)) if name == "resnet18" else (batch, 1, 28, 28)
        self.batches = rotated(lambda: self.batch(shape), 4 * torch.Size(shape).numel(), self.device, most=8)

    def batch(self, shape):
        return torch.randn(shape, device=self.device), torch.randint(10, shape[:1], device=self.device)

    def case(self):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        authors = swapped(self.model, unfused)
        self.reference(authors)
        providers = {
            OURS: self.provider(copy.deepcopy(self.model), "ours", sn.penalty),
            "plain": self.provider(swapped(self.model, plain), "plain"),
            "unfused": self.provider(copy.deepcopy(authors), "rival", unfused_penalty),
        }
        if not self.options.quick:
            providers["unfused, torch.compile"] = self.provider(authors, "rival", unfused_penalty, compile=True)
            ours = copy.deepcopy(self.model)
            providers[f"{OURS}: torch.compile"] = self.provider(ours, "path", sn.penalty, compile=True)
        return providers, lambda name, gradients: self.check([gradients[key] for key in self.wanted])

    def provider(self, model, role, penalty=None, compile=False):
        parameters = dict(model.named_parameters())
        optimizer = adam(parameters.values(), lr=RATE)
        forward = compiled(model, self.device) if compile else model
        if isinstance(forward, str):
            return forward
        step = Step(forward, self.batches, optimizer, penalty and (lambda _: LAM * penalty(model)), self.autocast)

        def run(k):
            step(k)
            return {name.replace(".layer.", "."): p.grad for name, p in parameters.items()}

        more = lambda: {"peak_bytes": peak_bytes(step, self.device)}  # noqa: E731
        return Provider(run, role, checked=role != "plain", more=more)

    def reference(self, authors):
        """The gradients of the first batch, in float64 and as the eager unfused composition has them."""
        found = []
        for model, kind in ((copy.deepcopy(authors).double(), torch.float64), (copy.deepcopy(authors), None)):
            batches = [(x.to(kind or x.dtype), y) for x, y in self.batches[:1]]
            autocast = self.autocast and kind is None
            Step(model, batches, adam(model.parameters(), lr=RATE), lambda m: LAM * unfused_penalty(m), autocast)()
            found.append({name.replace(".layer.", "."): p.grad for name, p in model.named_parameters()})
        expected, measured = found
        self.wanted = list(expected)
        dtype = torch.bfloat16 if self.autocast else torch.float32
        self.check = as_close_as(list(measured.values()), list(expected.values()), dtype, FLIPS)
