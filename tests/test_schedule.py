"""Lambda over the steps of a run."""

import pytest

import shrinknets_fast as sn


def values(schedule, steps):
    found = []
    for _ in range(steps):
        found.append(schedule.lam)
        schedule.step()
    return found


def test_shapes():
    assert values(sn.LambdaSchedule(2.0), 3) == [2.0, 2.0, 2.0]
    assert values(sn.LambdaSchedule(2.0, warmup=4, steps=6), 8) == [0.0, 0.5, 1.0, 1.5, 2.0, 2.0, 0.0, 0.0]
    assert values(sn.LambdaSchedule(2.0, warmup=1, steps=5, shape="linear"), 6) == [0.0, 2.0, 1.5, 1.0, 0.5, 0.0]
    assert values(sn.LambdaSchedule(2.0, steps=4, shape="cosine"), 5) == pytest.approx(
        [2.0, 1 + 0.5**0.5, 1.0, 1 - 0.5**0.5, 0.0]
    )


def test_it_goes_on_from_its_state():
    first = sn.LambdaSchedule(1.0, warmup=9)
    values(first, 5)
    second = sn.LambdaSchedule(1.0, warmup=9)
    second.load_state_dict(first.state_dict())
    assert values(second, 9) == values(first, 9)


@pytest.mark.parametrize(
    ("lam", "options", "message"),
    [
        (-1, {}, "lam is -1, expected a finite number of at least 0"),
        ("1", {}, "lam is '1'"),
        (1, {"warmup": 1.5}, "warmup is 1.5, expected an integer of at least 0"),
        (1, {"warmup": 5, "steps": 5}, "steps is 5, expected an integer of at least 6"),
        (1, {"shape": "round", "steps": 5}, "shape is 'round', expected one of constant, linear, cosine"),
        (1, {"shape": "linear"}, "shape is 'linear' without steps"),
    ],
)
def test_bad_values_are_refused(lam, options, message):
    with pytest.raises(sn.ShrinkError, match=f"LambdaSchedule: {message}"):
        sn.LambdaSchedule(lam, **options)
