"""Each script in examples/ runs at its tiny size: features leave, and it learns."""

import importlib.util
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent.parent / "examples"
NEEDS: dict[str, str] = {}  # script -> the package that it needs


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


@pytest.mark.filterwarnings("ignore:add_filters")
@pytest.mark.parametrize("script", sorted(path.stem for path in FOLDER.glob("*.py")))
def test_features_leave_and_the_loss_falls(script, nothing_stays, capsys):
    if script in NEEDS:
        pytest.importorskip(NEEDS[script], reason=f"needs {NEEDS[script]}")
    spec = importlib.util.spec_from_file_location(f"example_{script}", FOLDER / f"{script}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    before, after, first, last = module.main(["--tiny"])
    assert after < 0.9 * before, f"{before} parameters, {after} left"
    assert last < 0.95 * first
    said = capsys.readouterr().out
    assert f"{before:,} to {after:,}" in said and "loss" in said
