"""A run that is killed, whenever, goes on and ends as one that was not; no file is ever half there."""

import random
import signal
import time

import pytest
from training_runs import assert_same_end, check_whole, finished, started


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(folder of a run that nothing has stopped, its seconds)"""
    for name in ("warm", "run"):  # the server imports everything for the first one
        folder, begin = tmp_path_factory.mktemp("whole") / name, time.monotonic()
        status, said = finished(folder)
        assert status == 0, said
    return folder, time.monotonic() - begin


def options(folder):
    """As a user would: go on where there is something to go on from."""
    return ["--resume"] if (folder / "last.pt").exists() else []


def ends_well(folder, expected):
    status, said = finished(folder, *options(folder))
    assert status == 0, said
    assert_same_end(folder, expected)


def kill_at_random(whole, tmp_path, kills, seed):
    expected, seconds = whole
    dice, left, runs = random.Random(seed), kills, 0
    while left:
        runs += 1
        folder, alive = tmp_path / f"run{runs}", True
        while left and alive:
            process = started(folder, *options(folder))
            process.join(dice.uniform(0.2, 0.9) * seconds)
            alive = process.exitcode is None
            process.kill()
            process.join()
            assert process.exitcode in (-signal.SIGKILL, 0), (folder.parent / f"{folder.name}.log").read_text()
            left -= process.exitcode != 0
            check_whole(folder)
        ends_well(folder, expected)


def test_three_kills_at_random_moments(whole, tmp_path):
    kill_at_random(whole, tmp_path, 3, seed=0)


@pytest.mark.slow
def test_twenty_kills_at_random_moments(whole, tmp_path):
    kill_at_random(whole, tmp_path, 20, seed=1)


def kill_at_touches(whole, tmp_path, touches):
    for touch in touches:
        folder = tmp_path / f"run{touch}"
        status, said = finished(folder, kill_at=touch)
        assert status == -signal.SIGKILL, said
        check_whole(folder)
        ends_well(folder, whole[0])


def test_a_kill_while_the_first_files_and_later_ones_take_their_place(whole, tmp_path):
    kill_at_touches(whole, tmp_path, [4, 23])


@pytest.mark.slow
def test_a_kill_at_touches_throughout(whole, tmp_path):
    kill_at_touches(whole, tmp_path, range(0, 60, 4))
