"""torchvision's classifiers, one of each family: filters, random deaths, a collection, the same outputs."""

import warnings

import pytest

from bench.zoo import FAMILIES, measure
from shrinknets_fast.graph.results import tensors_in

pytest.importorskip("torchvision.models", reason="needs torchvision")
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", FAMILIES)
def test_family(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # an op without a rule
        row, model, x, optimizer, gc = measure(name)
    assert row["placed"] <= 1e-12 and row["difference"] <= 1e-10
    assert row["removed"] > 0 and row["after"] < row["before"]
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}
    loss = sum(t.square().mean() for t in tensors_in(model.train()(x)))
    loss.backward()
    optimizer.step()
    gc.step()
    assert all(bool(p.isfinite().all()) for p in model.parameters())
