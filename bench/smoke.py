"""Every kernel once on small odd sizes, for compute-sanitizer: python -m bench.smoke. Fails where a result is not finite."""

import itertools

import torch
from torch import nn

import shrinknets_fast as sn
from shrinknets_fast.filters import thetas

from . import adapters


def train_and_collect(device, dtype, path):
    """Filtered layers forward and backward, an optimizer step with dead features, a collection."""
    model = nn.Sequential(
        sn.FilteredConv2d(3, 13, 3, activation="relu"),
        nn.Conv2d(13, 19, 3, stride=2),
        sn.FilteredBatchNorm2d(19),
        nn.ReLU(),
        sn.Filter(19),
        nn.Flatten(),
        sn.FilteredLinear(19 * 7 * 7, 37, activation="relu"),
        nn.Linear(37, 10),
    ).to(device)
    for layer in model:
        if hasattr(layer, "path"):
            layer.path = path
    x = torch.randn(5, 3, 17, 17, device=device)
    optimizer = torch.optim.Adam(sn.param_groups(model, lr=1e-3), fused=True)
    gc = sn.GarbageCollector(model, x, optimizers=optimizer)
    for _ in range(3):
        with torch.no_grad():
            for theta in thetas(model).values():
                theta[:: max(3, len(theta) // 4)] = -1.0
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            loss = model(x).float().square().mean() + sn.penalty(model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        gc.step()
    assert bool(loss.isfinite()), f"the loss is {loss} on {device} in {dtype}, path {path}"


def compact(device):
    """Both modes on sizes that nothing divides."""
    for dims, fill in (((0,), True), ((0,), False), ((0, 1), False)):
        tensors = [torch.randn(n, n + 3, device=device) for n in (1, 7, 129, 300)]
        keep = [
            {d: adapters.places(torch.arange(0, n, 2), n, fill) for d, n in enumerate(t.shape) if d in dims}
            for t in tensors
        ]
        adapters.compact(tensors, keep)


def main():
    device = "cuda" if torch.cuda.is_available() else "cpu"
    paths = (None, "fold", "epilogue", *(["triton"] if device == "cuda" else []))
    for dtype, path in itertools.product((torch.float32, torch.bfloat16), paths):
        train_and_collect(device, dtype, path)
    if not adapters.why_no_compact():
        compact(device)
    if device == "cuda":
        torch.cuda.synchronize()
    print(f"smoke: passed on {device}")


if __name__ == "__main__":
    main()
