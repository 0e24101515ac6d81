"""The benchmark suite: its statistics, that a wrong provider gets no time, its rows, and the report made from them."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bench import memory, registry, report, rows, table
from bench.closeness import as_close_as
from bench.families.collection import Work
from bench.families.compaction import MODES, Tensors
from bench.models import lenet5, mlp, plain, swapped, unfused
from bench.rivals import collect_by_index_select
from bench.run import judge, run_families
from bench.timing import Effort, Timing, measure, rotated
from bench.training_step import Step, adam, unfused_penalty

CPU = torch.device("cpu")
EFFORT = Effort(seconds=0, least=3, most=3)


def provider(run, **more):
    return registry.Provider(run, **more)


@pytest.fixture
def family(monkeypatch):
    """Registers a family of one case, "case", from its providers; check: result == 1."""

    def register(providers, **case):
        one = registry.Case("case", lambda: (providers, lambda name, result: result == 1), **case)
        monkeypatch.setitem(registry.FAMILIES, "made_up", lambda options: [one])

    return register


def test_statistics():
    row = Timing([0.001, 0.002, 0.003, 0.004, 0.005, 0.006]).row()
    assert (row["median_ms"], row["p20_ms"], row["p80_ms"], row["runs"]) == pytest.approx((3.5, 2.0, 5.0, 6))
    assert row["noisy"]
    assert not Timing([0.001, 0.00101, 0.00102, 0.00103]).row()["noisy"]


def test_every_repetition_runs_every_provider_once_and_none_always_behind_the_same():
    order = []
    providers = {name: provider(lambda _, n=name: order.append(n)) for name in "abc"}
    timings = measure(providers, CPU, Effort(seconds=60, least=2, most=20), calls=1)
    assert [len(t.samples) for t in timings.values()] == [20, 20, 20]
    assert all(sorted(order[k : k + 3]) == ["a", "b", "c"] for k in range(0, 60, 3))
    assert {a + b for a, b in zip(order, order[1:], strict=False) if a != b} == {"ab", "ac", "ba", "bc", "ca", "cb"}


def test_short_calls_are_timed_in_groups_and_preparation_is_not_timed():
    slow = provider(lambda _: None, prepare=lambda _: time.sleep(0.002))
    counts = []
    timings = measure({"slow": slow, "count": provider(counts.append)}, CPU, EFFORT)
    assert max(timings["slow"].samples) < 0.0005
    assert len(counts) > 10 * EFFORT.most
    assert counts == list(range(len(counts)))


def test_inputs_are_rotated_past_the_cache():
    assert len(rotated(lambda: 0, 1, CPU)) == 32 and len(rotated(lambda: 0, 2**40, CPU)) == 2


def test_a_wrong_provider_gets_no_time_and_bounds_are_not_checked(family, tmp_path):
    family(
        {
            "right": provider(lambda _: 1, role="ours"),
            "wrong": provider(lambda _: 2),
            "broken": provider(lambda _: 1 / 0),
            "bound": provider(lambda _: 3, role="bound", checked=False),
            "absent": "no compiler",
        }
    )
    made, errors = run_families(["made_up"], registry.Options(), tmp_path, effort=EFFORT, say=lambda text: None)
    found = {row["provider"]: row for row in made}
    assert errors == 2 and set(found) == {"right", "wrong", "broken", "bound"}
    assert found["right"]["match"] is True and found["right"]["median_ms"] > 0
    assert found["bound"]["match"] is None and found["bound"]["median_ms"] > 0
    for name in ("wrong", "broken"):
        assert found[name]["match"] is False and found[name]["median_ms"] is None and "p20_ms" not in found[name]
    assert "ZeroDivisionError" in found["broken"]["error"]


def test_rows_are_appended_and_carry_their_keys(family, tmp_path):
    family({"right": provider(lambda _: 1, role="ours", more=lambda: {"saved_bytes": 5})}, fields={"dead": 0.5})
    for _ in range(2):
        run_families(["made_up"], registry.Options(seed=3), tmp_path, effort=EFFORT, say=lambda text: None)
    lines = [json.loads(line) for line in (tmp_path / "made_up.jsonl").read_text().splitlines()]
    assert len(lines) == 2 and rows.read(tmp_path) == lines
    machine = {
        "gpu",
        "driver",
        "cpu",
        "threads",
        "torch",
        "triton",
        "python",
        "p20_ms",
        "p80_ms",
        "match",
        "noisy",
        "run",
    }
    assert {*rows.ALWAYS, *machine} <= set(lines[0])
    assert (lines[0]["saved_bytes"], lines[0]["dead"], lines[0]["seed"]) == (5, 0.5, 3)


def test_committed_rows_carry_the_keys():
    for row in rows.read():
        assert set(rows.ALWAYS) <= set(row), row


def row(case, name, role, ms, **more):
    base = {"family": "layers", "case": case, "provider": name, "commit": "abc", "device": "a CPU", "median_ms": ms}
    return {**base, "kind": "cpu", "threads": 2, "torch": "2", "role": role, "run": "1", "noisy": False, **more}


ROWS = [
    row("won", "shrinknets_fast", "ours", 1.0),
    row("won", "plain", "plain", 0.9),
    row("won", "unfused", "rival", 2.0),
    row("Filter lost", "shrinknets_fast", "ours", 4.0),
    row("Filter lost", "unfused", "rival", 2.0),
    row("Filter lost", "compiled", "rival", 1.0),
    row("Filter lost", "fast but wrong", "rival", None, match=False),
]


def test_losing_cases_come_first():
    first, second = table.comparisons(ROWS)
    assert first.ours["case"] == "Filter lost" and first.loses and first.speedup == 0.25
    assert second.ratio == pytest.approx(1 / 0.9) and second.speedup == 2
    text = table.as_text([first, second]).splitlines()
    assert "Filter lost" in text[2] and "0.25x" in text[2] and "won" in text[3]


def test_the_last_run_counts_and_full_runs_replace_quick_ones():
    newer = row("won", "shrinknets_fast", "ours", 3.0, run="2")
    quick = row("small", "shrinknets_fast", "ours", 1.0, quick=True)
    found = table.comparisons([*ROWS[:3], newer, quick])
    assert [(c.ours["case"], c.ours["median_ms"], c.rivals) for c in found] == [("won", 3.0, ())]


def test_report(tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    reasons = tmp_path / "reasons.toml"
    reasons.write_text('[[reason]]\nfamily = "layers"\ncase = "Filter*"\nwhy = "because"\n')
    monkeypatch.setattr(report, "REASONS", reasons)
    for one in ROWS:
        rows.append(one, tmp_path / "results")
    report.write(tmp_path / "results", tmp_path)
    text = (tmp_path / "REPORT.md").read_text()
    assert "no GPU was at hand" in text and "without a reason" not in capsys.readouterr().out
    assert 0 < text.index("| Filter lost") < text.index("| won")
    assert "**0.25x**" in text and "because" in text
    assert "Filter lost: fast but wrong" in text
    assert (tmp_path / "charts/layers_speedup_cpu.png").stat().st_size > 1000
    rows.append(row("other", "shrinknets_fast", "ours", 4.0), tmp_path / "results")
    rows.append(row("other", "unfused", "rival", 2.0), tmp_path / "results")
    report.write(tmp_path / "results", tmp_path)
    assert "without a reason" in capsys.readouterr().out


def test_peak_memory_counts_what_is_freed():
    def run(first):
        second = first[0] + 1
        first.clear()  # frees what was there before
        return second * 2

    rise = memory.peak_rise(run, CPU, lambda: [torch.ones(250_000)])
    assert 1_000_000 <= rise < 1_000_100  # a few bytes for the scalars


@pytest.mark.parametrize("make", [lambda: mlp(30, 2, inputs=784), lambda: lenet5(6, 20)], ids=["mlp", "lenet5"])
def test_unfused_and_plain_are_the_same_network(make):
    model, x = make(), torch.randn(3, 1, 28, 28)
    torch.testing.assert_close(swapped(model, unfused)(x), model(x))
    with torch.no_grad():
        for theta in (p for name, p in model.named_parameters() if name.endswith("theta")):
            theta.fill_(1)
    torch.testing.assert_close(swapped(model, plain)(x), model(x))


@pytest.mark.parametrize("make", [lambda: mlp(30, 2, inputs=784), lambda: lenet5(6, 20)], ids=["mlp", "lenet5"])
def test_the_authors_collection_is_exact_and_keeps_the_optimizers_state(make):
    model = swapped(make(), unfused)
    thetas = [p for name, p in model.named_parameters() if name.endswith("theta")]
    with torch.no_grad():
        for theta in thetas:
            theta[::2] = -1
    optimizer = adam(model.parameters(), lr=1e-6)
    batch = (torch.randn(4, 1, 28, 28), torch.randint(10, (4,)))
    step = Step(model, [batch], optimizer, unfused_penalty)
    step()
    before, moment = model(batch[0]), optimizer.state[thetas[0]]["exp_avg"].clone()
    alive = thetas[0] > 0
    collect_by_index_select(model, optimizer)
    torch.testing.assert_close(model(batch[0]), before)
    first = next(p for name, p in model.named_parameters() if name.endswith("theta"))
    assert torch.equal(optimizer.state[first]["exp_avg"], moment[alive])
    assert len(optimizer.state) == len(list(model.parameters()))
    step()


def judged(providers, check):
    """{provider: match} of those that can run here and are checked."""
    found = {n: judge(n, p, check) for n, p in providers.items() if isinstance(p, registry.Provider) and p.checked}
    return {name: fields.get("error", fields["match"]) for name, fields in found.items()}


@pytest.mark.parametrize("part", ["collect", "apply", "trace", "plan", "look"])
def test_all_ways_of_collecting_pass_their_check(part):
    work = Work(40, 0.5, registry.Options())
    found = judged(*(getattr(work, part)() if hasattr(work, part) else work.of_ours(part)))
    assert set(found.values()) == {True}, found
    assert registry.OURS in found


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("share", [0.01, 0.5])
def test_all_ways_of_compacting_pass_their_check(mode, share):
    shapes = [(37, 41)] * 3 + [(8, 9, 2, 3)] * 3
    tensors = Tensors(shapes, MODES[mode], mode, share, registry.Options())
    providers, check = tensors.case()
    found = judged(providers, check)
    assert set(found.values()) == {True}, found
    assert registry.OURS in found
    assert not check("", tensors.fresh())  # nothing was removed


def test_closeness_refuses_a_wrong_scale_and_a_nan():
    exact = torch.randn(50, dtype=torch.float64)
    check = as_close_as([exact.float()], [exact], torch.float32)
    assert check([exact.float()])
    assert not check([exact.float() * 1.001]) and not check([exact.float() * torch.nan]) and not check([exact[:9]])


def test_a_quick_run_ends_with_a_table(tmp_path):
    command = [
        sys.executable,
        "-m",
        "bench",
        "layers",
        "--quick",
        "--only",
        "16x64x64",
        "--device",
        "cpu",
        "--out",
        tmp_path,
    ]
    run = subprocess.run(
        list(map(str, command)), cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.splitlines()[-4].startswith("what ")
    assert {r["part"] for r in rows.read(tmp_path)} == {"forward", "backward", "both"}
