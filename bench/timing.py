"""Timing: every repetition runs every provider once, in another random order, so that a machine's drift hits all of them alike
and none always comes behind the same one (whose freed memory decided whether it met page faults: 13.9 ms against 4.6, seen).

A sample is one prepared call, or the mean of as many calls as last a millisecond. Warm-up calls come first. On the CPU it is a
clock's difference. On CUDA it lies between two events, behind a flush of the L2; the time until the calls had returned (host) is
kept beside it. A single long call is queued behind the flush, as in a busy training loop; where calls are short, the device is
idle at the start, so that what the host needs to launch them counts.
"""

import gc
import itertools
import math
import random
import time
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import median, quantiles

import torch

NOISY = 1.2  # a timing whose 80th percentile is above this many times its 20th is marked as noise
SAMPLE_SECONDS = 1e-3  # shorter calls are timed in groups: the clock and the events cost microseconds
MOST_CALLS = 200


@dataclass(frozen=True)
class Effort:
    """How long a case may take: at least ``least`` repetitions, then as many as fit into ``seconds``, at most ``most``."""

    seconds: float = 2.0
    least: int = 5
    most: int = 51


@dataclass
class Timing:
    samples: list = field(default_factory=list)  # seconds per call
    host: list = field(default_factory=list)  # seconds until a call had returned; CUDA only

    def row(self):
        """The fields of a row, in milliseconds."""
        low, *_, high = quantiles(self.samples, n=5, method="inclusive") if len(self.samples) > 1 else self.samples * 2
        found = {"median_ms": 1e3 * median(self.samples), "p20_ms": 1e3 * low, "p80_ms": 1e3 * high}
        found |= {"runs": len(self.samples), "noisy": high > NOISY * low}
        return found | ({"host_ms": 1e3 * median(self.host)} if self.host else {})


class HostClock:
    """perf_counter; nothing to synchronise."""

    idle_start = True

    def sample(self, run, states):
        start = time.perf_counter()
        for state in states:
            run(state)
        return (time.perf_counter() - start) / len(states), None


class DeviceClock:
    """CUDA events, or the host's clock around a synchronised device where ``host`` (work that is partly the host's)."""

    def __init__(self, device, host=False):
        self.device, self.host, self.idle_start = device, host, True
        self.flush = torch.empty(2 * cache_bytes(device.type), dtype=torch.uint8, device=device)

    def sample(self, run, states):
        self.flush.zero_()
        if self.idle_start:
            torch.cuda.synchronize(self.device)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start = time.perf_counter()
        begin.record()
        for state in states:
            run(state)
        end.record()
        returned = time.perf_counter() - start
        torch.cuda.synchronize(self.device)
        seconds = time.perf_counter() - start if self.host else begin.elapsed_time(end) / 1e3
        return seconds / len(states), returned / len(states)


@cache
def cache_bytes(kind):
    """The size of the cache before memory: a GPU's L2, a CPU's last level (32 MiB where the system does not say)."""
    if kind == "cuda":
        return torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    sizes = [p.read_text().strip() for p in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max((int(s[:-1]) * {"K": 2**10, "M": 2**20}[s[-1]] for s in sizes if s[-1:] in "KM"), default=2**25)


def rotated(make, size, device, most=32):
    """Input sets to take in turn, enough of ``size`` bytes each to fill the cache twice, at most ``most``."""
    count = math.ceil(2 * cache_bytes(device.type) / max(size, 1))
    return [make() for _ in range(min(max(2, count), most))]


def measure(providers, device, effort, *, calls=None, host=False):
    """{name: Timing} of ``providers``: {name: object with run(state) and prepare(k) or None}.

    ``run`` gets what ``prepare(k)`` returned (untimed), or k, which counts up. calls: per sample; None finds them.
    """
    clock = DeviceClock(device, host) if device.type == "cuda" else HostClock()
    timings = {name: Timing() for name in providers}
    counters = {name: itertools.count() for name in providers}

    def states(name, number):
        if host:
            gc.collect()  # whole models, in cycles
        prepare = providers[name].prepare
        return [k if prepare is None else prepare(k) for k in itertools.islice(counters[name], number)]

    group = {
        name: calls or calls_per_sample(clock, p.run, lambda n=name: states(n, 1)) for name, p in providers.items()
    }
    clock.idle_start = host or any(number > 1 for number in group.values())
    gc.collect()
    gc.disable()
    try:
        start, names, shuffle = time.perf_counter(), list(providers), random.Random(0)
        for repeat in range(effort.most if names else 0):
            if repeat >= effort.least and time.perf_counter() - start > effort.seconds:
                break
            for name in shuffle.sample(names, len(names)):
                seconds, returned = clock.sample(providers[name].run, states(name, group[name]))
                timings[name].samples.append(seconds)
                if returned is not None:
                    timings[name].host.append(returned)
    finally:
        gc.enable()
    return timings


def calls_per_sample(clock, run, states):
    """Warm up, then the number of calls that last a millisecond."""
    seconds = min(clock.sample(run, states())[0] for _ in range(3))
    return min(max(1, math.ceil(SAMPLE_SECONDS / max(seconds, 1e-9))), MOST_CALLS)
