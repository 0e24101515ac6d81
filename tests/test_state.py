"""Whatever holds an optimizer's state: its tensors are found, and which of their dimensions are the parameter's."""

import enum
import types
from collections import deque

import numpy
import pytest
import torch

import shrinknets_fast as sn
from shrinknets_fast.companions.state import FLAT, Layout, Member, dims_of, find_layouts, tensors_of


class Slotted:
    __slots__ = ("value", "unset")

    def __init__(self, value):
        self.value = value


class Kind(enum.Enum):
    A = 1


def test_tensors_are_found_in_whatever_holds_them():
    a, b, c, d = (torch.ones(n) for n in (2, 3, 4, 5))
    state = {
        "step": torch.tensor(3.0),
        "one entry": torch.ones(1, 1),
        "exp_avg": a,
        "past": deque([b], maxlen=3),
        "nested": [[c], {"x": (Slotted(d),)}],
        "plain": (1, 2.0, "text", None, Kind.A, torch.float32, len, torch.Generator(), {1, 2}),
        "object": types.SimpleNamespace(inner=a),
    }
    state["object"].itself = state["object"]
    found = dict(tensors_of(state))
    assert found == {
        "exp_avg": a,
        "past[0]": b,
        "nested[0][0]": c,
        "nested[1]['x'][0].value": d,
        "object.inner": a,
    }


def test_what_may_hide_a_tensor_is_refused():
    with pytest.raises(sn.ShrinkError, match="state 'odd' is a ndarray"):
        list(tensors_of({"odd": numpy.zeros(3)}))


@pytest.mark.parametrize(
    ("shape", "whole", "dims"),
    [
        ((8, 5), (8, 5), (0, 1)),
        ((8, 1), (8, 5), (0, None)),
        ((1, 5), (8, 5), (None, 1)),
        ((8,), (8, 5), (0,)),
        ((5,), (8, 5), (1,)),
        ((5, 5), (8, 5), (1, 1)),
        ((8, 3), (8, 5, 3), (0, 2)),
        ((1,), (8, 5), (None,)),
        ((1, 1, 1), (8, 5), (None,) * 3),
        ((8,), (8, 8), None),  # a row's or a column's
        ((40,), (8, 5), None),
        ((7,), (8, 5), None),
        ((2, 8, 5), (8, 5), None),
    ],
)
def test_dimensions_by_their_sizes(shape, whole, dims):
    assert dims_of(shape, whole) == dims


def test_dimensions_as_a_trial_found_them():
    rows, gram, flat = Layout((0,), (11,)), Layout((1, 1), (9, 9)), Layout(FLAT, (99,))
    assert dims_of((8,), (8, 8), [rows]) == (0,)
    assert dims_of((8, 8), (8, 8), [gram]) == (1, 1)
    assert dims_of((40,), (8, 5), [flat]) == FLAT
    assert dims_of((8, 5), (8, 5), [gram]) == (0, 1)  # what does not fit tells nothing
    assert dims_of((10, 8), (8, 3), [Layout((None, 0), (10, 11))]) == (None, 0)
    assert dims_of((12, 8), (8, 3), [Layout((None, 0), (10, 11))]) is None


def test_layouts_from_two_sizes():
    before = (11, 9), {"avg": (11, 9), "row": (11,), "l": (11, 11), "history": (4, 9), "flat": (99,), "one": (11, 1)}
    after = (10, 8), {"avg": (10, 8), "row": (10,), "l": (10, 10), "history": (4, 8), "flat": (80,), "one": (10, 1)}
    found = {path: layout.dims for path, layout in find_layouts(before, after).items()}
    assert found == {
        "avg": (0, 1),
        "row": (0,),
        "l": (0, 0),
        "history": (None, 1),
        "flat": FLAT,
        "one": (0, None),
    }
    with pytest.raises(sn.ShrinkError, match=r"state 'blocks' has shape \(50, 2\) for a parameter of shape \(11, 9\)"):
        find_layouts(((11, 9), {"blocks": (50, 2)}), ((10, 8), {"blocks": (40, 2)}))
    with pytest.raises(sn.ShrinkError, match="gone"):
        find_layouts(((11, 9), {"gone": (50,)}), ((10, 8), {}))


def test_state_in_a_row_follows_as_a_view():
    row = torch.arange(12.0)
    member = Member.of(row, FLAT, (3, 4))
    keep = {0: torch.tensor([0, 2]), 1: torch.tensor([1, 2, 3])}
    assert member.kept(keep) is keep and member.owner is row
    sn.ops.compact.compact_([(member.tensor, keep)])
    member.put_in_row()
    assert row.tolist() == [1, 2, 3, 9, 10, 11]
