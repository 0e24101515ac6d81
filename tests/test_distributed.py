"""Several ranks train one model: they remove the same, or all of them say that they differ; wrappers stay valid."""

import pytest
import torch
from ranks import Raised, run_ranks

TOLERANCE = 1e-9


def gap(mine, theirs):
    """The largest difference of two dicts of tensors with the same names and shapes."""
    assert mine.keys() == theirs.keys()
    assert {k: v.shape for k, v in mine.items()} == {k: v.shape for k, v in theirs.items()}
    return max(
        (float((v.double() - theirs[k].double()).abs().max()) for k, v in mine.items() if v.numel()), default=0.0
    )


EXACT = [
    "perceptron",
    "convolutional",
    "residual",
    "found",
    "bucket_view",
    "static_graph",
    "unused_parameters",
    "accumulated",
    "accumulated_in_views",
    "small_buckets",
    "communication_hook",
    "builtin_hook",
]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """One pair of processes for all that leaves the two able to go on."""
    return run_ranks(EXACT, tmp_path_factory.mktemp("ranks"), timeout=150)


@pytest.mark.parametrize("case", EXACT)
def test_ranks_are_one_process_with_their_batches_together(outcomes, case):
    first, second = outcomes[case].good()
    assert gap(first["model"], second["model"]) == gap(first["moments"], second["moments"]) == 0
    one = first["alone"]
    assert first["removed"] == second["removed"] == one["removed"] and len(one["removed"]) >= 3
    assert gap(first["model"], one["model"]) <= TOLERANCE and gap(first["moments"], one["moments"]) <= TOLERANCE
    assert first["rebuilt"] and second["rebuilt"]
