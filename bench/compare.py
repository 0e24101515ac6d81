"""Time another commit beside this one: python -m bench compare REV.

REV is checked out into a throwaway git worktree and built there; the benchmarks are this checkout's on both sides. Each round
runs one process per side, in alternating order, so that the machine's drift hits both.
"""

import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from . import rows

ROOT = Path(__file__).parents[1]
CONTROL = "plain"  # does not depend on our code: how far it moved is how far the machine did


def compare(arguments):
    with throwaway(arguments.revision) as other, tempfile.TemporaryDirectory(prefix="bench-rows-") as scratch:
        sides = {"this": ROOT, "that": other}
        for k in range(arguments.rounds):
            for side in list(sides)[:: 1 if k % 2 == 0 else -1]:
                out = Path(scratch) / side / str(k)
                if measure(sides[side], arguments, out, k) and not out.exists():
                    raise SystemExit(f"bench compare: {side} ({sides[side]}) measured nothing in round {k + 1}")
            print(f"round {k + 1} of {arguments.rounds}", flush=True)
        times = {side: medians(Path(scratch) / side) for side in sides}
    print(as_text(times, arguments.revision))
    return 0


@contextmanager
def throwaway(revision):
    """A built worktree of ``revision`` with this checkout's bench/."""
    parent = Path(tempfile.mkdtemp(prefix="bench-compare-"))
    tree = parent / "tree"
    added = subprocess.run(
        git("worktree", "add", "--detach", tree, revision), capture_output=True, text=True, check=False
    )
    try:
        if added.returncode:
            raise SystemExit(f"bench compare: {added.stderr.strip()}")
        shutil.rmtree(tree / "bench", ignore_errors=True)
        shutil.copytree(ROOT / "bench", tree / "bench", ignore=shutil.ignore_patterns("__pycache__", "results"))
        print(f"building {revision}", flush=True)
        build = subprocess.run(
            [sys.executable, "setup.py", "build_ext", "--inplace"],
            cwd=tree,
            capture_output=True,
            text=True,
            check=False,
        )
        if build.returncode:
            raise SystemExit(f"bench compare: {revision} does not build:\n{build.stdout[-3000:]}{build.stderr[-3000:]}")
        yield tree
    finally:
        subprocess.run(git("worktree", "remove", "--force", tree), capture_output=True, check=False)
        shutil.rmtree(parent, ignore_errors=True)


def git(*arguments):
    return ["git", "-C", str(ROOT), *map(str, arguments)]


def measure(tree, arguments, out, seed):
    command = [
        sys.executable,
        "-m",
        "bench",
        arguments.family,
        "--out",
        out,
        "--roles",
        "ours",
        "plain",
        "--seed",
        seed,
    ]
    command += [] if arguments.full else ["--quick"]
    command += ["--only", arguments.only] if arguments.only else []
    run = subprocess.run(list(map(str, command)), cwd=tree, capture_output=True, text=True, check=False)
    if run.returncode:
        print(run.stdout[-2000:] + run.stderr[-2000:], file=sys.stderr)
    return run.returncode


def medians(folder):
    """{(case, role): median over the rounds}"""
    found = defaultdict(list)
    for one in folder.iterdir():
        for row in rows.read(one):
            if row["median_ms"] is not None:
                found[row["case"], row["role"]].append(row["median_ms"])
    return {key: median(values) for key, values in found.items()}


def as_text(times, revision):
    """A line per case, the most slowed first; ``control`` is the same ratio of the plain layer."""
    this, that = times["this"], times["that"]
    lines = []
    for case, role in this:
        if role == "ours" and (case, role) in that:
            control = this.get((case, CONTROL), 0) / that[case, CONTROL] if (case, CONTROL) in that else None
            lines.append((this[case, role] / that[case, role], control, this[case, role], that[case, role], case))
    text = [f"this checkout over {revision}: above 1 is slower; control: the same for what is not ours"]
    text.append(f"{'ratio':>6}  {'control':>7}  {'this ms':>10}  {'that ms':>10}  case")
    for ratio, control, mine, theirs, case in sorted(lines, reverse=True):
        shown = f"{control:7.2f}" if control else " " * 7
        text.append(f"{ratio:6.2f}  {shown}  {mine:10.4g}  {theirs:10.4g}  {case}")
    return "\n".join(text)
