"""The registry's cases as pytest-benchmark sees them: one test per case and provider, grouped by case."""

import os
import secrets

import pytest
import torch

from .registry import Options, load
from .run import judge

ROUNDS = 15
PROVIDERS = ("shrinknets_fast", "plain", "unfused", "unfused, torch.compile")


def options():
    """Quick sizes; FULL=1 in the environment asks for the full ones."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Options(quick=os.environ.get("FULL", "") in ("", "0"), device=device, seed=secrets.randbits(31))


def parameters(family):
    """pytest.mark.parametrize for every case of ``family`` and every provider, by name: a test makes its case itself."""
    cases = [case.name for case in load()[family](options())]
    names = [pytest.param(case, name, id=f"{case}: {name}") for case in cases for name in PROVIDERS]
    return pytest.mark.parametrize(("case", "name"), names)


def run(benchmark, family, case, name):
    """Check the provider, then time it; an unavailable one is skipped."""
    case = next(c for c in load()[family](options()) if c.name == case)
    benchmark.group = case.name
    providers, check = case.make()
    provider = providers.get(name, "not part of this case")
    if isinstance(provider, str):
        pytest.skip(provider)
    fields = judge(name, provider, check)
    assert fields["match"] is not False, fields.get("error", "the result differs from the reference")
    counter = iter(range(10**9))

    def setup():
        k = next(counter)
        return (k if provider.prepare is None else provider.prepare(k),), {}

    def timed(state):
        result = provider.run(state)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return result

    benchmark.pedantic(timed, setup=setup, rounds=ROUNDS, warmup_rounds=2)
