"""What stands around a training loop: each run loses the same whether its dead features leave or stay in place."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.utils.checkpoint import checkpoint

import shrinknets_fast as sn

pytestmark = pytest.mark.filterwarnings("ignore:no rule for", "ignore:There is a performance drop")

STEPS, DEATHS = 9, (2, 5)
CLOSE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}  # of a loss


class Network(nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 12, 3), sn.FilteredBatchNorm2d(12, init=0.8)
        self.hidden, self.last = sn.FilteredLinear(12 * 4, 16, init=0.8), nn.Linear(16, 3)
        self.to(dtype)

    def features(self, x):
        return self.norm(self.conv(x)).relu().flatten(1)

    def forward(self, x):
        return self.last(self.hidden(self.features(x)).relu())


class Run:
    """A model, what a situation has put around it, and the steps that it takes."""

    def __init__(self, dtype=torch.float64, adapt=lambda model: model, **options):
        torch.manual_seed(0)
        self.dtype, self.model = dtype, adapt(Network(dtype))
        self.x, self.y = torch.randn(STEPS, 8, 3, 4, 4, dtype=dtype), torch.randn(STEPS, 8, 3, dtype=dtype)
        self.optimizers = self.made_optimizers()
        self.gc = sn.GarbageCollector(self.model, self.x[0], optimizers=self.optimizers, **self.options())

    def made_optimizers(self):
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        return [torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1)]

    def options(self):
        return {}

    def loss(self, k):
        return (self.model(self.x[k]) - self.y[k]).float().square().mean().to(self.dtype)

    def step(self, k):
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss = self.loss(k)
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss

    def check(self, k):
        """What else has to hold after each step."""


@torch.no_grad()
def kill(model, count):
    """Of each filter the first of those that live."""
    for theta in sn.filters.thetas(model).values():
        theta[torch.nonzero(theta > 0).flatten()[:count]] = 0


def losses(make, collects):
    run, found = make(), []
    for k in range(STEPS):
        if k in DEATHS:
            kill(run.model, 3)
        found.append(run.step(k).detach().double())
        run.check(k)
        if collects and k in DEATHS:
            assert run.gc.collect().removed
    return torch.stack(found), run


def assert_the_same(make):
    (with_removal, run), (in_place, whole) = losses(make, True), losses(make, False)
    assert in_place.isfinite().all() and in_place.std() > 0
    torch.testing.assert_close(with_removal, in_place, rtol=CLOSE[run.dtype], atol=0)
    alive = {name: count for name, (count, _) in sn.features(run.model).items()}
    assert alive == {name: count for name, (count, _) in sn.features(whole.model).items()}
    assert all(alive[name] == total for name, (_, total) in sn.features(run.model).items() if name in run.shrinks)


Run.shrinks = ("norm", "hidden")


class Scaled(Run):
    """float16 under autocast; the fourth step overflows and is skipped, with dead features and momentum in place."""

    kind, overflows = torch.float16, (3,)

    def __init__(self):
        super().__init__(torch.float32)
        self.dtype = self.kind
        self.scaler = torch.amp.GradScaler("cpu", init_scale=64.0, enabled=self.kind == torch.float16)

    def step(self, k):
        self.optimizers[0].zero_grad()
        with torch.autocast("cpu", self.kind):
            out = self.model(self.x[k])
        loss = (out.float() - self.y[k]).square().mean()
        skips = k in self.overflows
        before = [p.detach().clone() for p in self.model.parameters()]
        self.scaler.scale(loss * float("inf") if skips else loss).backward()
        self.scaler.unscale_(self.optimizers[0])
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.scaler.step(self.optimizers[0])
        self.scaler.update()
        same = [torch.equal(p, b) for p, b in zip(self.model.parameters(), before, strict=True)]
        assert all(same) if skips else not any(same)
        return loss


class InBfloat16(Scaled):
    kind, overflows = torch.bfloat16, ()


class ScaledFused(Scaled):
    def made_optimizers(self):
        return [torch.optim.Adam(self.model.parameters(), lr=1e-2, fused=True)]


class OfHalf(Run):
    kind = torch.float16

    def __init__(self):
        super().__init__(self.kind)

    def made_optimizers(self):
        return [torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)]


class OfBfloat16(OfHalf):
    kind = torch.bfloat16


class ChannelsLast(Run):
    def __init__(self):
        super().__init__(adapt=lambda model: model.to(memory_format=torch.channels_last))
        self.x = torch.stack([x.to(memory_format=torch.channels_last) for x in self.x])

    def check(self, k):
        weight = self.model.conv.weight
        state = self.optimizers[0].state[weight]
        assert all(t.is_contiguous(memory_format=torch.channels_last) for t in (weight, state["exp_avg"]))


class Clipped(Run):
    clip = staticmethod(lambda parameters: nn.utils.clip_grad_norm_(parameters, 0.1))

    def step(self, k):
        self.optimizers[0].zero_grad()
        loss = self.loss(k)
        loss.backward()
        self.clip(self.model.parameters())
        self.optimizers[0].step()
        return loss


class ClippedByValue(Clipped):
    clip = staticmethod(lambda parameters: nn.utils.clip_grad_value_(parameters, 0.01))


class Accumulated(Run):
    """Features die and leave between two backward passes of one step."""

    def step(self, k):
        loss = self.loss(k)
        (loss / 3).backward()
        if k % 3 == 2:
            self.optimizers[0].step()
            self.optimizers[0].zero_grad()
        return loss


class With(Run):
    """An optimizer of torch's by its options."""

    kind, given = torch.optim.Adam, {}

    def made_optimizers(self):
        return [self.kind(self.model.parameters(), **self.given)]


def with_options(name, kind, **given):
    return type(name, (With,), {"kind": kind, "given": given})


class Checkpointed(Run):
    reentrant = False

    def loss(self, k):
        x = self.x[k].requires_grad_() if self.reentrant else self.x[k]
        h = checkpoint(self.model.features, x, use_reentrant=self.reentrant)
        out = checkpoint(lambda h: self.model.last(self.model.hidden(h).relu()), h, use_reentrant=self.reentrant)
        return (out - self.y[k]).square().mean()


class CheckpointedReentrant(Checkpointed):
    reentrant = True

    def __init__(self):
        super().__init__()
        self.x = [x.clone() for x in self.x]


class ByFunctions(Run):
    """torch.func computes the gradients of one sample after the other, at once; the norm in evaluation."""

    def __init__(self):
        super().__init__()
        self.model.eval()

    def step(self, k):
        named = {name: p.detach() for name, p in self.model.named_parameters()}
        buffers = dict(self.model.named_buffers())

        def loss(parameters, x, y):
            return (functional_call(self.model, (parameters, buffers), (x[None],))[0] - y).square().mean()

        each = vmap(grad(loss), in_dims=(None, 0, 0))(named, self.x[k], self.y[k])
        for name, p in self.model.named_parameters():
            p.grad = each[name].mean(0)
        self.optimizers[0].step()
        return self.loss(k)


class Several(Run):
    def made_optimizers(self):
        conv, rest = list(self.model.conv.parameters()), list(self.model.parameters())[2:]
        return [torch.optim.SGD(conv, lr=0.05, momentum=0.9, nesterov=True), torch.optim.NAdam(rest, lr=1e-2)]


class Frozen(Run):
    def __init__(self):
        super().__init__(adapt=self.freeze)

    @staticmethod
    def freeze(model):
        model.conv.requires_grad_(False)
        model.last.weight.requires_grad_(False)
        return model

    def check(self, k):
        assert [n for n, p in self.model.named_parameters() if not p.requires_grad] == [
            "conv.weight",
            "conv.bias",
            "last.weight",
        ]


class Averaged(Run):
    """The average follows, and goes on averaging."""

    def options(self):
        self.average = torch.optim.swa_utils.AveragedModel(
            self.model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=True
        )
        return {"follow": self.average, "follow_dead": "drop"}

    def check(self, k):
        self.average.update_parameters(self.model)
        inside = self.average.module
        assert [p.shape for p in inside.parameters()] == [p.shape for p in self.model.parameters()]
        assert inside.eval()(self.x[k]).isfinite().all()


class AveragedByTimm(Averaged):
    def options(self):
        self.average = pytest.importorskip("timm.utils", reason="needs timm").ModelEmaV3(self.model, decay=0.9)
        self.average.update_parameters = self.average.update
        return {"follow": self.average, "follow_dead": "drop"}


RUNS = [Scaled, ScaledFused, InBfloat16, OfHalf, OfBfloat16, ChannelsLast, Clipped, ClippedByValue, Accumulated]
RUNS += [Checkpointed, CheckpointedReentrant, ByFunctions, Several, Frozen, Averaged, AveragedByTimm]
RUNS += [
    with_options("Foreach", torch.optim.RAdam, lr=1e-2, foreach=True),
    with_options("Fused", torch.optim.AdamW, lr=1e-2, fused=True, amsgrad=True),
    with_options("FusedSGD", torch.optim.SGD, lr=0.05, momentum=0.9, fused=True),
    with_options("FusedAdagrad", torch.optim.Adagrad, lr=0.05, fused=True),
    with_options("RateOfATensor", torch.optim.Adam, lr=torch.tensor(1e-2), foreach=False),
    with_options("Maximised", torch.optim.Adamax, lr=-0.0 + 1e-3, maximize=True),
]


@pytest.mark.parametrize("make", RUNS, ids=lambda make: make.__name__)
def test_a_run_goes_on_as_if_the_dead_were_in_place(make):
    assert_the_same(make)
