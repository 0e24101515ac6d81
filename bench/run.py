"""Run families: check every provider, time those that are right, append a row for each."""

import functools
import gc
import time
import traceback
import warnings
from dataclasses import replace

import torch

from . import registry, rows
from .timing import Effort, measure

QUICK = Effort(seconds=0.3, least=5, most=21)
FULL = Effort(seconds=4.0, least=7, most=51)


def run_families(names, options, out, *, only=None, providers=None, budget=None, effort=None, say=None):
    """Rows of all cases whose name contains ``only``; providers: roles to time. Returns (rows, errors).

    budget: seconds after which no further case begins.
    """
    say = say or functools.partial(print, flush=True)
    effort = effort or (QUICK if options.quick else FULL)
    end = time.perf_counter() + (budget or float("inf"))
    made, errors, run = [], 0, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    for name in names:
        for case in registry.load()[name](options):
            if only and only not in case.name:
                continue
            if time.perf_counter() > end:
                say(f"{name}: {case.name}: left out, the budget of {budget:g} s is spent")
                continue
            try:
                found = list(run_case(name, case, options, effort, providers))
            except registry.Unavailable as reason:
                say(f"{name}: {case.name}: left out, {reason}")
                continue
            except Exception:  # one broken case must not hide the others
                say(f"{name}: {case.name}: FAILED\n{traceback.format_exc()}")
                errors += 1
                continue
            for row in found:
                row |= {"run": run, "quick": options.quick, "seed": options.seed}
                if not row.get("unavailable"):
                    rows.append(row, out)
                    made.append(row)
                errors += row.get("match") is False
            say(f"{name}: {case.name}: " + ", ".join(map(in_words, found)))
    return made, errors


def run_case(family, case, options, effort, roles=None):
    """Yields one row per provider. A provider whose result is wrong gets match=False and no time."""
    torch.manual_seed(options.seed)
    if case.measure:
        for name, fields in case.measure().items():
            yield rows.make(family, case.name, name, options.device.type, **case.fields, **fields)
        return
    providers, check = case.make()
    if roles:
        providers = {n: p for n, p in providers.items() if not isinstance(p, registry.Provider) or p.role in roles}
    fields, right = {}, {}
    for name, provider in providers.items():
        if case.host:
            gc.collect()  # the last provider's whole model, in cycles
        fields[name] = judge(name, provider, check)
        if "unavailable" not in fields[name] and fields[name]["match"] is not False:
            right[name] = provider
    effort = replace(effort, least=case.least or effort.least)
    timings = measure(right, options.device, effort, calls=case.calls, host=case.host)
    for name, provider in providers.items():
        more = {**case.fields, **fields[name]}
        if name in timings:
            more |= timings[name].row() | provider.more()
        yield rows.make(family, case.name, name, options.device.type, **more)


def judge(name, provider, check):
    """{"role", "match"} of one checked call; {"unavailable": why} where it cannot run here."""
    if isinstance(provider, str):
        return {"unavailable": provider}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = provider.once()
    except Exception as error:
        words = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        return {"role": provider.role, "match": False, "error": words}
    return {"role": provider.role, "match": bool(check(name, result)) if provider.checked else None}


def in_words(row):
    name = row["provider"]
    if row.get("unavailable"):
        return f"{name} unavailable ({row['unavailable']})"
    if row.get("match") is False:
        return f"{name} WRONG, no time ({row.get('error', 'its result differs')})"
    time_ms = "" if row["median_ms"] is None else f" {row['median_ms']:.4g} ms"
    return f"{name}{time_ms}{' (noisy)' if row.get('noisy') else ''}"
