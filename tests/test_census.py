"""The census: every fate of a model has its row, rows are not made twice, what is wrong is seen, the page puts losers first."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from census_models import MODELS, network

import shrinknets_fast as sn
from bench.__main__ import main
from bench.census import exactness, libraries, one, page, runner
from bench.census.prepare import prepared

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def census(tmp_path_factory):
    """(the rows, what was said in each of the four runs)"""
    out = tmp_path_factory.mktemp("census") / "rows.jsonl"
    command = [sys.executable, HERE / "census_models.py", out]
    environment = {**os.environ, "PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return runner.read(out), run.stdout.split("run\n")[1:]


def test_each_fate_has_its_row(census):
    rows = {row["case"]: row for row in census[0]}
    status = {name: row["status"] for name, row in rows.items()}
    assert status["network"] == "exact" and status["layer"] == "nothing to remove"
    assert status["branching"].startswith("refused: Branching cannot be traced in train mode")
    assert status["broken"].startswith("crashed: RuntimeError: ") and "mat1 and mat2" in status["broken"]
    assert status["hangs"] == "timeout: more than 1 s" and status["ends"] == "crashed: the process ended with 3"
    assert rows["network"].keys() == rows["hangs"].keys() == rows["broken"].keys()


def test_a_row_says_what_can_leave_and_what_left(census):
    row = {row["case"]: row for row in census[0]}["network"]
    assert row["parameters"] == 6 * 20 + 20 + 2 * 20 + 20 * 3 + 3 and row["filters"] == 1
    assert row["removed"] == 8 * (6 + 1 + 2 + 3) / row["parameters"]
    assert row["coverage"] == pytest.approx(1 - 3 / row["parameters"])
    assert 0 < max(row["output"], row["gradients"], row["state"]) < 1e-12 and 0 < row["perturbed"] < 1e-12
    assert row["made_s"] > 0 and row["peak_mb"] > 0 and row["torch"] == torch.__version__
    assert {row["case"]: row for row in census[0]}["layer"]["reasons"]


def test_rows_of_the_same_code_are_not_made_twice(census):
    rows, said = census
    assert [len(text.splitlines()) for text in said] == [len(MODELS), 1, 2, 1]
    assert all("absent network: left out, no_such_module is not installed" in text for text in said[:3])
    assert sum(row["case"] == "network" for row in rows) == 2 and len(rows) == len(MODELS) + 1


def step_of():
    torch.manual_seed(0)
    model, args, kwargs = prepared(network(), (torch.randn(8, 6),), {})
    sn.add_filters(model, args)
    optimizer = torch.optim.Adam(model.parameters())
    one.kill(model)
    return exactness.step(model, optimizer, args, kwargs)


def test_every_kind_of_difference_is_seen():
    run = step_of()
    assert exactness.distances(run, run) == {"output": 0.0, "gradients": 0.0, "state": 0.0}
    for field, kind in (("gradients", "gradients"), ("exp_avg", "state"), ("exp_avg_sq", "state")):
        changed = {**getattr(run, field), "0.weight": getattr(run, field)["0.weight"] * 1.001}
        found = exactness.distances(dataclasses.replace(run, **{field: changed}), run)
        assert found[kind] == pytest.approx(1e-3) and sum(found.values()) == found[kind]
    outputs = [run.outputs[0], run.outputs[1] + 1e-3]
    assert exactness.distances(dataclasses.replace(run, outputs=outputs), run)["output"] > 1e-4
    missing = dataclasses.replace(run, gradients={})
    assert exactness.distances(missing, run)["gradients"] == math.inf
    unlike = dataclasses.replace(run, outputs=[t[:1] for t in run.outputs])
    assert exactness.distances(unlike, run)["output"] == math.inf


def test_a_wrong_collection_is_called_wrong(monkeypatch):
    collect = sn.GarbageCollector.collect

    def wrong(self):
        collection = collect(self)
        with torch.no_grad():
            next(self.model.parameters()).mul_(1 + 1e-6)
        return collection

    monkeypatch.setitem(libraries.LIBRARIES, "made_up", ("census_models", "torch"))
    assert one.measure("made_up", "network")["status"] == "exact"
    monkeypatch.setattr(sn.GarbageCollector, "collect", wrong)
    row = one.measure("made_up", "network")
    assert row["status"] == "wrong" and row["output"] > 1e-8


def test_rounding_that_the_model_amplifies_itself_is_told_from_a_fault():
    found = {"output": 2e-6, "gradients": 1e-7, "state": 0.0}
    assert one.judged(found, perturbed=1e-6, placed=0.0) == "exact (amplifies rounding)"
    assert one.judged(found, perturbed=1e-9, placed=0.0) == "wrong"
    assert one.judged({**found, "output": 0.5}, perturbed=0.2, placed=0.0) == "wrong"
    assert one.judged(dict.fromkeys(found, 1e-12), perturbed=0.0, placed=1e-3) == "wrong"


def test_the_page_has_losers_first_and_compares_with_before(census, tmp_path):
    now, before, out = tmp_path / "now.jsonl", tmp_path / "before.jsonl", tmp_path / "models.md"
    now.write_text("".join(json.dumps(row) + "\n" for row in census[0]) + '{"cut off')
    worse = [{**row, "coverage": 0.0, "status": "wrong"} for row in census[0] if row["case"] == "network"]
    before.write_text(json.dumps(worse[0]) + "\n")
    page.write(now, before, out)
    text = out.read_text()
    order = [text.index(f"| {name} (made_up)") for name in ("broken", "hangs", "branching", "layer", "network")]
    assert order == sorted(order)
    assert "| models | 1 | 6 |" in text
    assert "| by status | 1 wrong | 2 crashed; 1 timeout; 1 refused; 1 nothing to remove; 1 exact |" in text
    assert "| traced and collected | 0% | 33% |" in text
    page.write(tmp_path / "none.jsonl", now, out)
    assert "| models | 6 |" in out.read_text()


def test_the_command_names_what_it_does_not_know(tmp_path, capsys):
    assert main(["census", "--model", "no_such", "--out", str(tmp_path / "rows.jsonl")]) == 2
    assert (
        "--model is 'no_such', which is no model of own, timm, transformers, torchvision, smp"
        in capsys.readouterr().out
    )
    assert not (tmp_path / "rows.jsonl").exists()


def test_the_census_is_as_large_as_promised():
    count = {library: len(libraries.names(library)) for library in libraries.LIBRARIES}
    assert sum(count.values()) >= 150 and count["timm"] >= 80 and count["transformers"] >= 44


def test_a_model_is_prepared_without_a_change_to_torch():
    before = torch.Tensor.float
    prepared(network(), (torch.randn(8, 6),), {})
    assert torch.Tensor.float is before and torch.ones(1).float().dtype == torch.float32
