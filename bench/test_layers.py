"""pytest bench --benchmark-only: the family "layers", small sizes (FULL=1: all)."""

import pytest

pytest.importorskip("pytest_benchmark", reason="needs pytest-benchmark (extra bench)")

from .pytest_cases import parameters, run  # noqa: E402


@parameters("layers")
def test_layers(benchmark, case, name):
    run(benchmark, "layers", case, name)
