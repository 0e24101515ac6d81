"""aliveness and bury_ against their twins: every dtype, groups, odd sizes, what is not finite."""

import pytest
import torch
from closeness import DTYPES

from shrinknets_fast import reference
from shrinknets_fast.ops.aliveness import aliveness, counts_in, masks_in
from shrinknets_fast.ops.bury import bury_

SIZES = (1, 2, 7, 64, 257, 1000, 3001)


def thetas(dtype, device):
    return [torch.randn(n, device=device).to(dtype) for n in SIZES]


def flat(groups):
    return [t for group in groups for t in group], [i for i, group in enumerate(groups) for _ in group]


@pytest.mark.parametrize("dtype", DTYPES)
def test_masks_and_counts(dtype, device):
    groups = [[t] for t in thetas(dtype, device)]
    groups[2][0][:] = -1.0  # all dead
    groups[3][0][:] = 1.0  # none
    groups[4][0][3], groups[4][0][5], groups[4][0][7] = float("nan"), float("inf"), -float("inf")
    found = aliveness(groups)
    assert found.device.type == device and torch.equal(found, reference.aliveness(*flat(groups)))


def test_a_feature_of_a_group_is_dead_when_it_is_dead_in_all_copies(device):
    groups = [
        [torch.tensor([1.0, -1.0, 0.0], device=device)],
        [torch.tensor([-1.0, -1, 1, 0], device=device), torch.tensor([-1.0, 1, -1, -0.0], device=device).double()],
    ]
    seen = aliveness(groups)
    counts, masks = counts_in(seen, 2), masks_in(seen, [3, 4])
    assert [mask.tolist() for mask in masks] == [[False, True, True], [True, False, False, True]]
    assert counts == [2, 0, 2, 0]


def test_a_tiny_float64_theta_is_alive(device):
    theta = torch.tensor([1e-300, -1e-300], dtype=torch.float64, device=device)
    seen = aliveness([[theta]])
    assert masks_in(seen, [2])[0].tolist() == [False, True] and counts_in(seen, 1) == [1, 0]


def test_more_groups_than_a_launch_takes(device):
    groups = [[torch.randn(3, device=device), torch.randn(3, device=device)] for _ in range(1500)]
    assert torch.equal(aliveness(groups), reference.aliveness(*flat(groups)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("state_dtype", DTYPES)
def test_the_dead_are_buried_with_their_state(dtype, state_dtype, device):
    given, expected = [], []
    for theta in thetas(dtype, device):
        state = [torch.randn(len(theta), device=device).to(state_dtype) for _ in range(len(theta) % 3)]
        theta[: len(theta) // 3] = float("nan")  # not dead
        given.append((theta, state))
        expected.append(reference.bury(theta, state))
    versions = [t._version for theta, state in given for t in (theta, *state)]
    bury_(given)
    for (theta, state), twins in zip(given, expected, strict=True):
        for found, twin in zip((theta, *state), twins, strict=True):
            torch.testing.assert_close(found, twin, rtol=0, atol=0, equal_nan=True)
    after = [t._version for theta, state in given for t in (theta, *state)]
    assert all(new > old for new, old in zip(after, versions, strict=True))


def test_state_that_the_kernel_does_not_take_is_buried_too():
    theta, state = torch.tensor([1.0, -1.0, 0.0]), torch.tensor([3, 4, 5], dtype=torch.int8)
    bury_([(theta, [state, torch.ones(6)[::2]])])
    assert theta.tolist() == [1, 0, 0] and state.tolist() == [3, 0, 0]


def test_nothing_is_nothing():
    bury_([])
