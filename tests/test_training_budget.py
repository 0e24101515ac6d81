"""``train --target-...``: the run ends at the asked size, whatever it is counted in."""

import pytest
import torch
from test_training_loop import QUICK, run

from shrinknets_fast.__main__ import main

FAST = ["--epochs", "16", "--lr", "5e-3", "--lam", "5e-3", "--filter-lr", "2e-2"]


@pytest.mark.parametrize(
    ("options", "low", "high", "size"),
    [
        (["--target-parameters", "800"], 720, 800, "parameters_after"),
        (["--target-features", "14", "--proximal", "--no-collect"], 14, 14, None),
        (["--target-flops", "1500"], 1300, 1500, "parameters_after"),
    ],
)
def test_the_run_ends_at_the_target(tmp_path, options, low, high, size):
    summary, epochs, last = run(tmp_path, *FAST, *options)
    alive = [alive for alive, _ in summary["features"].values()]
    found = summary[size] if size else sum(alive)
    if "--target-flops" in options:
        found = 2 * (64 * alive[0] + alive[0] * alive[1] + alive[1] * 10)
    assert low <= found <= high
    assert last["budget"]["reached"] and last["budget"]["steps"] == last["step"]
    assert summary["test_accuracy"] > 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target-parameters", "many"], "argument --target-parameters: 'many' is not a positive finite number"),
        (["--target-parameters", "1e9"], "--target-parameters: Budget: parameters is 1e+09, but Sequential has only"),
        (
            ["--target-parameters", "3"],
            "--target-parameters: Budget: parameters is 3, but 87 stay even if all filters die",
        ),
        (
            ["--target-flops", "5", "--target-features", "5"],
            "--target-flops and --target-features are given, expected one",
        ),
        (["--target-features", "9", "--lam", "0"], "--target-features with --lam 0"),
    ],
)
def test_bad_targets_are_one_line(tmp_path, capsys, options, message):
    out = tmp_path / "run"
    try:
        status = main(["train", *QUICK, *options, "--out", str(out)])
    except SystemExit as stopped:
        status = stopped.code
    lines = capsys.readouterr().err.strip().splitlines()
    assert status == 2 and len(lines) == 1 and message in lines[0]
    assert not out.exists()


def test_without_a_target_there_is_no_budget(tmp_path):
    assert run(tmp_path)[2]["budget"] is None
    assert torch.load(tmp_path / "last.pt", weights_only=True)["budget"] is None
