"""Two ranks share the parts of a model (fully_shard): they remove the same, exactly, and no rank holds a parameter whole."""

import pytest
import torch
from ranks import Raised, run_once, run_ranks
from test_distributed import TOLERANCE, gap, shared

EXACT = ["perceptron_in_shards", "residual_in_shards", "one_feature"]
MORE = [
    "convolutional_in_shards",
    "as_one_unit",
    "kept_whole_after_forward",
    "offloaded",
    "fused_in_shards",
    "nesterov_in_shards",
    "accumulated_in_shards",
    "pending_in_shards",
]
OTHERS = ["counted", "peak", "from_meta", "refused_in_shards", "other_options_in_shards", "one_met_in_shards"]
SLOWER = ["mixed_precision", "compiled_in_shards"]
REFUSED = {
    "unreduced gradients": "GarbageCollector: gradients wait that were not reduced (set_requires_gradient_sync(False));",
    "a state that is loaded into shards": "load_state_dict: 0.weight is sharded; do this before fully_shard",
    "filters added to shards": "0.weight is a DTensor, sharded by tensor parallelism, or before this call came to it; ",
    "sharded after the collector": "0.theta was replaced since the model was traced; ",
    "only a layer is sharded": "2.weight is not among the parameters that fully_shard has sharded, so no rank averages it; ",
    "a theta that is ignored": "0.theta is not among the parameters that fully_shard has sharded, so no rank averages it; ",
    "columns are sharded": "0.weight is sharded along dimension 1, where fully_shard wants equal parts ",
    "tensor parallelism": "4.weight is a DTensor, sharded by tensor parallelism, or before this call came to it; ",
    "copies": "GarbageCollector: follow is given, and copies of what fully_shard has sharded cannot shrink",
    "a torch of tomorrow": f"fully_shard of torch {torch.__version__} holds 'size_of_tomorrow', which ",
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    return run_once([*EXACT, *OTHERS], shared(tmp_path_factory) / "shards", timeout=300)


@pytest.fixture(scope="module")
def more_outcomes(tmp_path_factory):
    return run_once([*MORE, *SLOWER], shared(tmp_path_factory) / "more_shards", timeout=500)


def check_exact(*ranks):
    first = ranks[0]
    one = first["alone"]
    for other in ranks[1:]:
        assert gap(first["model"], other["model"]) == gap(first["moments"], other["moments"]) == 0
        assert first["removed"] == other["removed"]
    assert first["removed"] == one["removed"] and len(one["removed"]) >= 3
    assert gap(first["model"], one["model"]) <= TOLERANCE and gap(first["moments"], one["moments"]) <= TOLERANCE
    assert all(found["same objects"] for found in ranks)


@pytest.mark.parametrize("case", EXACT)
def test_ranks_with_parts_are_one_process_with_the_whole(outcomes, case):
    check_exact(*outcomes[case].good())


@pytest.mark.slow
@pytest.mark.parametrize("case", MORE)
def test_so_they_are_with_every_option(more_outcomes, case):
    check_exact(*more_outcomes[case].good())


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 3])
def test_with_other_numbers_of_ranks(tmp_path, world):
    for outcomes in run_ranks(EXACT[:1], tmp_path / "ranks", 200, world).values():
        # a batch of 32 is not the same on three ranks: their averages weigh its rows otherwise
        if world == 1:
            check_exact(*outcomes.good())
        first, *others = outcomes.good()
        assert len(first["removed"]) >= 3
        assert all(gap(first["model"], other["model"]) == 0 for other in others)


@pytest.mark.slow
def test_parts_that_several_ranks_have(tmp_path):
    found = run_ranks(["replicas_that_differ", "replicated"], tmp_path / "ranks", 300, 4)
    check_exact(*found["replicated"].good())
    for said in found["replicas_that_differ"]:
        assert said.text.startswith("0.theta differs by 0.01 at feature 35 ") and said.kind == "ShrinkError"


def test_penalty_and_features_are_of_the_whole_model(outcomes):
    for found, alone, shown in outcomes["counted"].good():
        assert found[0] == pytest.approx(alone[0], rel=1e-12)
        assert torch.equal(found[1], alone[1]) and found[2] == alone[2]
        assert "alive=?/64" in shown


def test_no_rank_has_a_parameter_whole(outcomes):
    for most, part, before, removed in outcomes["peak"].good():
        assert removed == {"0": 516}
        assert (
            most < 2 * part < before
        )  # a part as it was, as it goes and as it comes; the state of Adam is there thrice


def test_parameters_that_were_never_whole(outcomes):
    for shapes in outcomes["from_meta"].good():
        assert shapes["0.weight"] == (58, 64) and shapes["2.weight"] == (64, 58)


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_shrink_is_refused_in_one_line(outcomes, case):
    for said in outcomes["refused_in_shards"].good():
        assert said[case].startswith(REFUSED[case]) and "\n" not in said[case]


def test_ranks_that_differ_all_say_so(outcomes):
    for found in outcomes["other_options_in_shards"]:
        assert isinstance(found, Raised) and found.kind == "ShrinkError"
        assert found.text == "every is not the same on all ranks: 1 on rank 0, 2 on rank 1; nothing was removed"


def test_what_one_rank_has_met_all_say(outcomes):
    one, other = outcomes["one_met_in_shards"]
    assert one.text.startswith("Adam: state 'odd' has shape (5, 5), expected the parameter's (64, 64)")
    assert other.text.startswith("rank 0 has met an error: ShrinkError: Adam: state 'odd' has shape (5, 5)")


@pytest.mark.slow
def test_mixed_precision(more_outcomes):
    for difference, removed, kept in more_outcomes["mixed_precision"].good():
        assert removed > 30 and kept == 0 and difference <= 1e-2  # of bfloat16


@pytest.mark.slow
def test_compiled_code_lets_go(more_outcomes):
    for difference, shapes in more_outcomes["compiled_in_shards"].good():
        assert difference <= TOLERANCE and shapes["0.weight"][0] <= 61


@pytest.mark.slow
def test_a_checkpoint_of_parts_is_resumed_on_any_number_of_ranks(tmp_path):
    folder = str(tmp_path / "checkpoint")
    (saved,) = run_ranks(["checkpoint"], tmp_path / "saved", 200, 2, saved=folder).values()
    straight = saved.good()[0]
    assert all(len(removed) >= 3 for removed in straight["removed"])
    for world in (2, 1):
        (resumed,) = run_ranks(["resume"], tmp_path / f"resumed{world}", 200, world, saved=folder).values()
        for found in resumed.good():
            assert found["removed"][1] == straight["removed"][1]
            assert gap(found["model"], straight["model"]) <= TOLERANCE
            assert gap(found["moments"], straight["moments"]) <= TOLERANCE
            if world == 2:
                assert gap(found["model"], straight["model"]) == gap(found["moments"], straight["moments"]) == 0
