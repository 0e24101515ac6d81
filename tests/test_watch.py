"""What the collector's looks cost: nothing waits for the device between collections, one copy brings the masks of all filters."""

import pytest
import torch
from networks import kill, mlp
from torch import nn

import shrinknets_fast as sn
from shrinknets_fast.watch import Watch


def watched(thetas):
    return Watch({i: (f"layer{i}", theta) for i, theta in enumerate(thetas)}, lambda name, theta: ())


def test_masks_and_counts_of_all_filters(device):
    thetas = [torch.tensor([1.0, 0.0, -1.0], device=device), torch.tensor([0.5], device=device)]
    watch = watched(thetas)
    assert {k: m.tolist() for k, m in watch.masks().items()} == {0: [False, True, True], 1: [False]}
    watch.look()
    counts = watch.counts()
    while counts is None:
        counts = watch.counts()
    assert counts == {0: (2, 3), 1: (0, 1)} and watch.counts() is None


def test_a_look_under_way_is_not_started_again(device):
    theta = torch.tensor([1.0, 2.0], device=device)
    watch = watched([theta])
    watch.look()
    theta[0] = -1
    watch.look()
    if device == "cuda":
        torch.cuda.synchronize()
    assert watch.counts() == {0: (0, 2)}
    watch.look()
    watch.forget()
    assert watch.counts() is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_named(value, device):
    watch = watched([torch.ones(3, device=device), torch.tensor([1.0, value], device=device)])
    with pytest.raises(sn.ShrinkError, match=f"layer1.theta holds {value}: training has diverged"):
        watch.masks()


def test_no_filters_no_looks():
    watch = watched([])
    watch.look()
    assert watch.masks() == {} and watch.counts() is None


@pytest.mark.gpu
def test_no_step_between_collections_waits_for_the_device():
    model = mlp(width=32).cuda()
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    x = torch.randn(4, 16, dtype=torch.float64, device="cuda")
    gc = sn.GarbageCollector(model, x, optimizers=optimizer, min_dead=0.5)
    for step in range(5):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        torch.cuda.set_sync_debug_mode("default" if step == 0 else "error")
        try:
            optimizer.step()
            assert gc.step() is None
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_a_collection_copies_from_the_device_once():
    model = nn.Sequential(sn.FilteredLinear(8, 40), nn.ReLU(), sn.FilteredLinear(40, 30), nn.Linear(30, 2)).cuda()
    gc = sn.GarbageCollector(model, torch.randn(2, 8, device="cuda"))
    kill(model)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        assert gc.collect().removed
        torch.cuda.synchronize()
    copies = [event.name for event in profile.events() if "Memcpy DtoH" in event.name]
    kernels = [event.name for event in profile.events() if "compact" in event.name]
    assert len(copies) == 1 and len(kernels) == 1
