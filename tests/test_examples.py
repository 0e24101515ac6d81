"""Each script in examples/ runs at its tiny size: features leave, and it learns."""

import importlib.util
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent.parent / "examples"
NEEDS = {"lightning_digits": "lightning", "hf_trainer": "transformers", "accelerate_digits": "accelerate"}
ON_CUDA = {"cuda_graph"}  # elsewhere they say what they need


@pytest.fixture
def nothing_stays():
    """Rules that a script registers are its own; so are its random numbers."""
    from shrinknets_fast.graph.rules import registry

    before = dict(registry.RULES), dict(registry.MODULES)
    with torch.random.fork_rng():
        yield
    for table, content in zip((registry.RULES, registry.MODULES), before, strict=True):
        table.clear()
        table.update(content)


def script_of(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
@pytest.mark.parametrize("script", sorted(ON_CUDA))
def test_without_a_gpu_one_line_says_so(script, capsys):
    script_of(script).main(["--tiny"])
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "needs a CUDA device" in said


@pytest.mark.filterwarnings("ignore:add_filters")
@pytest.mark.parametrize(
    "script",
    [
        pytest.param(path.stem, marks=[pytest.mark.gpu] if path.stem in ON_CUDA else [])
        for path in sorted(FOLDER.glob("*.py"))
    ],
)
def test_features_leave_and_the_loss_falls(script, nothing_stays, capsys):
    if script in NEEDS:
        pytest.importorskip(NEEDS[script], reason=f"needs {NEEDS[script]}")
    before, after, first, last = script_of(script).main(["--tiny"])
    assert after < 0.9 * before, f"{before} parameters, {after} left"
    assert last < 0.95 * first
    said = capsys.readouterr().out
    assert f"{before:,} to {after:,}" in said and "loss" in said
