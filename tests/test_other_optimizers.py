"""Optimizers from other packages: after a removal they go on as if the dead were there, or it was said before the first step.

Needs what ``pip install '.[sweep]'`` brings; a package that is not there has no cases.
"""

import copy
import importlib
import inspect
import warnings

import pytest
import torch
from torch import nn

import shrinknets_fast as sn

pytestmark = pytest.mark.slow
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}  # of outputs of size 1, after ten steps
STEPS, REMOVAL = 10, 5
# Their own step needs what no gradient of a filtered layer gives, or another calling convention than step() or step(closure).
ANOTHER_LOOP = {"BSAM", "SAM", "GSAM", "WSAM", "LookSAM", "FriendlySAM", "PCGrad", "SPlus", "DynamicLossScaler"}
ANOTHER_LOOP |= {
    "SAMWrapper",
    "SplitOpt",
    "SOAPBase",
    "PSGDBase",
    "LoRARite",
}  # the last pairs parameters by their order


def importable(name):
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def classes_of(package, base=torch.optim.Optimizer):
    """{name: maker of an optimizer for named parameters}"""
    module = importable(package)
    found = {}
    for name, kind in vars(module).items() if module else ():
        if inspect.isclass(kind) and issubclass(kind, base) and kind is not base and name not in ANOTHER_LOOP:
            found[f"{package}.{name}"] = lambda model, kind=kind: made(kind, model)
    return found


def made(kind, model):
    """With its own defaults, and a learning rate where it has none."""
    needs = inspect.signature(kind).parameters
    rate = {"lr": 1e-3} if "lr" in needs and needs["lr"].default is inspect.Parameter.empty else {}
    return kind(list(model.parameters()), **rate)


def makers():
    found = classes_of("torch.optim") | classes_of("pytorch_optimizer") | classes_of("schedulefree")
    found |= classes_of("prodigyopt") | classes_of("lion_pytorch") | classes_of("heavyball")
    if timm := importable("timm.optim"):
        for name in timm.list_optimizers():
            found[f"timm.{name}"] = lambda model, name=name: timm.create_optimizer_v2(model, opt=name, lr=1e-3)
    if accelerate := importable("accelerate"):
        found["accelerate.AdamW"] = lambda model: accelerate.Accelerator(cpu=True).prepare(
            torch.optim.AdamW(model.parameters())
        )
    return found


MAKERS = makers()


@pytest.fixture(autouse=True)
def without_compiling():
    """heavyball compiles what it computes, for minutes each."""
    with torch.compiler.set_stance("force_eager"):
        yield


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = sn.FilteredConv2d(2, 12, 3, activation="relu")
        self.hidden = sn.FilteredLinear(12 * 16, 24, activation="relu")
        self.out = nn.Linear(24, 4)

    def forward(self, x):
        return self.out(self.hidden(self.conv(x).flatten(1)))


def steps(model, optimizer, batches):
    """The loss of each batch; the optimizer's own random numbers are the same for every model."""
    losses = []
    for k, x in enumerate(batches):
        torch.manual_seed(k)

        def closure(x=x):
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            return loss

        losses.append(closure().detach())
        try:
            optimizer.step()
        except TypeError:
            optimizer.step(closure)
    return torch.stack(losses)


def why_not(maker, dtype):
    """What keeps it from working in this loop on a network without filters, or None."""
    torch.manual_seed(0)
    model = sn.fold_filters(Net().to(dtype))
    try:
        losses = steps(model, prepared(maker, model), torch.randn(3, 4, 2, 6, 6, dtype=dtype))
    except Exception as error:
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:100]}"
    return None if losses.isfinite().all() else "its losses are not finite"


def prepared(maker, model):
    optimizer = maker(model)
    if hasattr(optimizer, "train"):
        optimizer.train()
    return optimizer


@pytest.mark.parametrize("name", MAKERS)
def test_exact_or_said(name, record_property):
    for dtype in TOLERANCE:
        if (reason := why_not(MAKERS[name], dtype)) is None:
            break
    else:
        pytest.skip(f"{name}, with its own defaults on a plain network: {reason}")
    torch.manual_seed(0)
    model = Net().to(dtype)
    masked = copy.deepcopy(model)
    batches = torch.randn(STEPS, 4, 2, 6, 6, dtype=dtype)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        optimizers = [prepared(MAKERS[name], m) for m in (model, masked)]
        try:
            gc = sn.GarbageCollector(model, batches[0], optimizers=optimizers[0])
            guard = sn.GarbageCollector(masked, batches[0], optimizers=optimizers[1])  # noqa: F841  never collects
        except sn.ShrinkError as error:
            assert "\n" not in str(error) and "optimizer" in str(error)
            return record_property("outcome", f"refused: {error}")
    told = [str(w.message) for w in said if issubclass(w.category, UserWarning) and "statistics" in str(w.message)]
    told += [
        text for w in said if any(words in (text := str(w.message)) for words in ("not be tried", "small tensors"))
    ]
    losses = [steps(m, o, batches[:REMOVAL]) for m, o in zip((model, masked), optimizers, strict=True)]
    if told and not torch.allclose(*losses):  # draws numbers of its own
        return record_property("outcome", f"warned, not repeatable: {told[0]}")
    torch.testing.assert_close(*losses, rtol=TOLERANCE[dtype] / 1e3, atol=1e-12)
    with torch.no_grad():
        for m in (model, masked):
            m.conv.theta[1:4] = 0
            m.hidden.theta[::3] = 0
    filters = {"conv": model.conv.theta, "hidden": model.hidden.theta}
    dead = {key: min(int((theta <= 0).sum()), len(theta) - 1) for key, theta in filters.items()}
    assert dead["conv"] >= 3 and dead["hidden"] >= 8  # large steps kill more
    try:
        removed = gc.collect().removed
    except sn.ShrinkError as error:
        assert told and "\n" not in str(error), f"refused at the removal, and nothing was said before: {error}"
        return record_property("outcome", f"warned, refused at the removal: {error}")
    assert removed == dead
    if any("small tensors" in text or "not be tried" in text for text in told):  # its step may fail from here on
        return record_property("outcome", f"warned: {told[0]}")
    losses = [steps(m, o, batches[REMOVAL:]) for m, o in zip((model, masked), optimizers, strict=True)]
    drift = float((losses[0] - losses[1]).abs().max() / losses[1].abs().max())
    record_property("outcome", f"{'warned' if told else 'exact'}, differs by {drift:.1e}")
    assert told or drift < TOLERANCE[dtype]
    return None
