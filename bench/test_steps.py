"""pytest bench --benchmark-only: the family "steps", small sizes (FULL=1: all)."""

import pytest

pytest.importorskip("pytest_benchmark", reason="needs pytest-benchmark (extra bench)")

from .pytest_cases import parameters, run  # noqa: E402


@parameters("steps")
def test_steps(benchmark, case, name):
    run(benchmark, "steps", case, name)
