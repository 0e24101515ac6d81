"""What the rows of a GPU say of the package's goals there, a line each: python -m bench.goals --results FOLDER

compact_ moves at 90% of a copy_ of as many bytes at least, in one launch (with a fill of its flags and a copy of its table: three
entries of the profiler), and never waits for the device.
"""

import argparse
import sys
from pathlib import Path

from . import rows
from .table import comparisons

BANDWIDTH = 0.9
ENTRIES = 3


def lines(found):
    """(met, words) for each case of compaction that ran on CUDA."""
    for one in comparisons(found):
        if one.ours["family"] == "compaction" and one.ours["device"] == "cuda":
            launches, syncs = one.ours.get("launches"), one.ours.get("syncs")
            met = one.fraction >= BANDWIDTH and launches is not None and launches <= ENTRIES and syncs == 0
            yield met, f"{one.ours['case']}: {one.fraction:.0%} of copy_, {launches} launches, {syncs} synchronisations"


def main():
    parser = argparse.ArgumentParser(prog="python -m bench.goals", description=__doc__.split("\n")[0])
    parser.add_argument("--results", default=rows.RESULTS, type=Path, help="folder of the rows")
    found = list(lines(rows.read(parser.parse_args().results)))
    for met, words in found:
        print(f"{'met' if met else 'MISSED':<7} {words}")
    print(f"{sum(met for met, _ in found)} of {len(found)} goals met on CUDA")
    return int(not found or not all(met for met, _ in found))


if __name__ == "__main__":
    sys.exit(main())
