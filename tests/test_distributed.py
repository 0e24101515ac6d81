"""Several ranks train one model: they remove the same, or all of them say that they differ; wrappers stay valid."""

import os

import pytest
from ranks import Raised, run_once, run_ranks

TOLERANCE = 1e-9  # of parameters and moments in float64, against one process with the same batches
SECONDS = 10  # until all ranks have heard that they differ

EXACT = ["perceptron", "residual", "found", "unused_parameters", "static_graph", "pending_in_views"]
MORE = [
    "convolutional",
    "bucket_view",
    "accumulated",
    "accumulated_in_views",
    "pending",
    "small_buckets",
    "communication_hook",
    "trimmed_on_one_rank",
    "compiled",
    "compiled_inside",
]
# Each rank says the same. Case -> what it begins with.
DIFFER = {
    "one_theta_drifts": "2.theta differs by 0.01 at feature 3 ",
    "one_bit_drifts": "2.theta differs by ",
    "one_theta_drifts_at_collect": "2.theta differs by 0.01 at feature 3 ",
    "one_rank_kills_more": "0.theta differs by ",
    "one_rank_kills_more_at_collect": "what leaves '0' is not the same on all ranks: ",
    "each_rank_kills_others": "0.theta differs by ",
    "each_rank_kills_others_at_collect": "what leaves '0' is not the same on all ranks: ",
    "other_options": "every is not the same on all ranks: 1 on rank 0, 2 on rank 1; ",
    "other_seeds": "generator is not the same on all ranks: ",
    "other_steps": "call is not the same on all ranks: step() number 2 on rank 0, step() number 7 on rank 1; ",
    "other_calls": "call is not the same on all ranks: step() number 2 on rank 0, collect() on rank 1; ",
    "other_copies": "2.theta in a copy differs (shape (64,), no entry) between rank 0 and rank 1; ",
}
# Nothing differs, and each says for itself why it goes no further.
REFUSED = {
    "not_finite": "0.theta holds nan: training has diverged, nothing was removed",
    "zero_redundancy": "optimizers holds ZeroRedundancyOptimizer, of whose state each rank keeps a part",
    "inside_join": "GarbageCollector: the model is inside Join, and ranks that have run out of inputs ",
    "late_filters": "0.theta is not among the parameters that its DistributedDataParallel averages; ",
    "late_filters_of_the_inner_module": "0.theta is not among the parameters that its DistributedDataParallel averages; ",
    "another_model": "0.weight is not among the parameters that its DistributedDataParallel averages; ",
    "ignored_theta": "0.theta is not among the parameters that its DistributedDataParallel averages; ",
    "hook_with_memory": "the communication hook <lambda> keeps tensors in its state's 'errors', which cannot shrink; ",
    "frozen_objects": "GarbageCollector: gc.freeze() hides whether the model is wrapped ",
}
# One rank has met an error: it says it itself, and the other says which rank it was.
ONE_MET = {
    "a_rank_of_whom_something_is_not_followed": "Adam: state 'odd' has shape (5, 5), expected the parameter's (12,)",
    "a_rank_with_another_theta": "0.theta was replaced since the model was traced",
}
OTHERS = ["power_sgd", "builtin_hook", "uneven_norm", "wrapped_anew", "loaded_in_a_wrapper"]


def gap(mine, theirs):
    """The largest difference of two dicts of tensors with the same names and shapes."""
    assert mine.keys() == theirs.keys()
    assert {k: v.shape for k, v in mine.items()} == {k: v.shape for k, v in theirs.items()}
    return max(
        (float((v.double() - theirs[k].double()).abs().max()) for k, v in mine.items() if v.numel()), default=0.0
    )


def largest(mine, theirs):
    return gap(dict(enumerate(mine)), dict(enumerate(theirs)))


def shared(tmp_path_factory):
    """A folder that all workers of a run have: one of them starts the processes."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """One pair of processes for all that leaves the two able to go on."""
    cases = [*EXACT, *OTHERS, *DIFFER, *REFUSED, *ONE_MET]
    return run_once(cases, shared(tmp_path_factory) / "ranks", timeout=300)


@pytest.fixture(scope="module")
def more_outcomes(tmp_path_factory):
    return run_once(MORE, shared(tmp_path_factory) / "more_ranks", timeout=500)


def check_exact(first, second):
    assert gap(first["model"], second["model"]) == gap(first["moments"], second["moments"]) == 0
    one = first["alone"]
    assert first["removed"] == second["removed"] == one["removed"] and len(one["removed"]) >= 3
    assert gap(first["model"], one["model"]) <= TOLERANCE and gap(first["moments"], one["moments"]) <= TOLERANCE
    assert first["rebuilt"] and second["rebuilt"]


@pytest.mark.parametrize("case", EXACT)
def test_ranks_are_one_process_with_their_batches_together(outcomes, case):
    check_exact(*outcomes[case].good())


@pytest.mark.slow
@pytest.mark.parametrize("case", MORE)
def test_so_they_are_with_every_option(more_outcomes, case):
    check_exact(*more_outcomes[case].good())


def test_power_sgd_starts_anew_with_each_reducer(outcomes):
    first, second = outcomes["power_sgd"].good()
    assert gap(first[0]["model"], second[0]["model"]) == 0 and first[0]["removed"] == second[0]["removed"]
    for _, ((before, memory), (after, left)), last in (first, second):
        assert before > 4 and memory > 0 and (after, left) == (2, 0)  # 4: where it begins to compress
        assert last[0] > 4 and last[1] > 0


def test_a_builtin_hook_stays(outcomes):
    for shares, removed in outcomes["builtin_hook"].good():
        assert shares == [1.0] * 3 and removed == [5] * 3


def test_a_synchronised_norm_is_that_of_one_process_with_other_numbers_of_rows(outcomes):
    for own, whole in outcomes["uneven_norm"].good():
        assert largest(own, whole) < 1e-13


def test_a_wrapper_that_the_collector_was_not_given_averages_after_a_collection(outcomes):
    for first_is_gone, averaged, whole in outcomes["wrapped_anew"].good():
        assert first_is_gone and largest(averaged, whole) < 1e-15


def test_a_checkpoint_loaded_in_a_wrapper_in_use_is_averaged(outcomes):
    for averaged, whole in outcomes["loaded_in_a_wrapper"].good():
        assert largest(averaged, whole) < 1e-15 and averaged[0].shape[0] == 55


def check_said(found, begins):
    kind, text, seconds, unchanged = found
    assert kind == "ShrinkError" and text.startswith(begins) and "\n" not in text
    assert seconds < SECONDS and unchanged


@pytest.mark.parametrize("case", DIFFER)
def test_ranks_that_differ_all_say_so_and_nothing_changed(outcomes, case):
    first, second = (found if isinstance(found[0], str) else found[0] for found in outcomes[case].good())
    check_said(first, DIFFER[case])
    assert first[1] == second[1] and first[1].endswith("nothing was removed") and second[2] < SECONDS and second[3]


@pytest.mark.parametrize("case", [case for case in DIFFER if case.startswith(("one_", "each_"))])
def test_once_mended_they_go_on(outcomes, case):
    for _, gone in outcomes[case].good():
        assert gone["0"] == (10 if case == "one_rank_kills_more_at_collect" else 20)


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_followed_is_refused_on_every_rank(outcomes, case):
    for found in outcomes[case].good():
        check_said(found if isinstance(found[0], str) else found[0], REFUSED[case])


@pytest.mark.parametrize("case", ONE_MET)
def test_an_error_of_one_rank_stops_all(outcomes, case):
    (other, later), (own, later_too) = outcomes[case].good()
    check_said(own, ONE_MET[case])
    check_said(other, f"rank 1 has met an error: ShrinkError: {ONE_MET[case]}")
    assert later == later_too  # and then they agree


@pytest.mark.slow
def test_a_rank_that_died_is_an_error_of_the_other_one(tmp_path):
    alive, dead = run_ranks(["a_rank_dies"], tmp_path / "ranks", timeout=100)["a_rank_dies"]
    assert dead is None
    check_said(alive, "the ranks could not be compared, nothing was removed; every rank has to make the same calls ")


@pytest.mark.slow
def test_a_rank_that_does_not_step_hangs_nobody(tmp_path):
    """gloo ends one process, and the other hears of it."""
    found = run_ranks(["only_one_rank_steps"], tmp_path / "ranks", timeout=100)["only_one_rank_steps"]
    assert all(outcome is None or outcome[0] in ("ShrinkError", "RuntimeError") for outcome in found)
    assert "collective mismatch" in found.said and found.seconds < 60


def test_what_a_case_raises_is_seen(tmp_path):
    """The other tests would see it if the processes failed."""
    found = run_ranks(["no_such_case"], tmp_path / "ranks", timeout=100, world=1)["no_such_case"]
    assert isinstance(found[0], Raised) and found[0].kind == "AttributeError"
    with pytest.raises(AssertionError, match="no_such_case"):
        found.good()
