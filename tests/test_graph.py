"""The pieces of the graph on their own."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import shrinknets_fast as sn
from shrinknets_fast.graph.choice import choose, size_left
from shrinknets_fast.graph.features import FeatureSpace, connected
from shrinknets_fast.graph.rules.shape import view_groups


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 40), st.lists(st.tuples(st.integers(0, 39), st.integers(0, 39)), max_size=60))
def test_connected_is_union_find(size, edges):
    edges = [(a % size, b % size) for a, b in edges]
    parent = list(range(size))

    def find(i):
        while parent[i] != i:
            i = parent[i]
        return i

    for a, b in edges:
        low, high = sorted((find(a), find(b)))
        parent[high] = low
    expected = [find(i) for i in range(size)]
    first, second = (torch.tensor([e[k] for e in edges], dtype=torch.int64) for k in (0, 1))
    assert connected(torch.arange(size), first, second).tolist() == expected


def test_a_long_chain_settles_to_one_feature():
    space = FeatureSpace()
    axes = [space.new_axis(1) for _ in range(2000)]
    for a, b in itertools.pairwise(axes):
        space.unify(a, b, "")
    space.settle()
    assert space.count == 1 and all(int(a.ids) == 0 for a in axes)


def test_removed_features_leave_every_axis():
    space = FeatureSpace()
    first = space.new_axis(4)
    flat = space.axis(first.ids.repeat_interleave(2))
    space.settle()
    space.remove(torch.tensor([False, True, False, True]))
    assert first.ids.tolist() == [0, 2] and flat.ids.tolist() == [0, 0, 2, 2]


def test_removed_features_leave_in_the_order_of_a_fill():
    space = FeatureSpace()
    first = space.new_axis(5)
    flat, other = space.axis(first.ids.repeat_interleave(2)), space.new_axis(2)
    space.settle()
    gone = torch.tensor([True, False, False, False, False, False, True])
    space.remove(gone, [(torch.arange(5), torch.tensor([4, 1, 2, 3]))])  # the last fills the hole in front
    assert first.ids.tolist() == [4, 1, 2, 3] and flat.ids.tolist() == [4, 4, 1, 1, 2, 2, 3, 3]
    assert other.ids.tolist() == [5]


@pytest.mark.parametrize(
    ("before", "after", "groups"),
    [
        ((2, 8, 3, 3), (2, 72), [([0], [0]), ([1, 2, 3], [1])]),
        ((2, 72), (2, 8, 3, 3), [([0], [0]), ([1], [1, 2, 3])]),
        ((2, 8, 1, 1), (2, 8), [([0], [0]), ([1], [1]), ([2, 3], [])]),
        ((2, 8), (2, 8, 1), [([0], [0]), ([1], [1]), ([], [2])]),
        ((1, 8), (8,), [([0, 1], [0])]),
        ((4, 6), (6, 4), [([0, 1], [0, 1])]),
        ((2, 6, 5), (2, 2, 3, 5), [([0], [0]), ([1], [1, 2]), ([2], [3])]),
    ],
)
def test_view_groups(before, after, groups):
    assert [g for g in view_groups(before, after) if g != ([], [])] == groups


@settings(max_examples=300, deadline=None)
@given(
    st.integers(1, 50),
    st.integers(0, 50),
    st.integers(1, 9),
    st.integers(1, 60),
    st.floats(0.05, 1.0),
    st.integers(0, 99),
)
def test_choose_removes_dead_ones_only_and_never_all(total, dead, align, least, removal, seed):
    generator = torch.Generator().manual_seed(seed)
    leave = torch.zeros(total, dtype=torch.bool)
    leave[torch.randperm(total, generator=generator)[:dead]] = True
    chosen = choose(leave, size_left(int(leave.sum()), total, align, least, removal), removal, generator)
    left = total - int(chosen.sum())
    assert not bool((chosen & ~leave).any())
    assert left >= min(least, total)
    assert left % align == 0 or left == total
    if removal == 1.0 and align == 1:
        assert left == min(max(total - int(leave.sum()), least), total)


class WritesThroughDropout(nn.Module):
    """In evaluation mode dropout hands its input on, so the sigmoid changes what the head reads; in training it does not."""

    def __init__(self):
        super().__init__()
        self.first, self.head = sn.FilteredLinear(4, 6), nn.Linear(6, 2)

    def forward(self, x):
        hidden = self.first(x)
        nn.functional.dropout(hidden, training=self.training).sigmoid_()
        return self.head(hidden)


class WritesThroughChunk(WritesThroughDropout):
    def forward(self, x):
        hidden = self.first(x)
        with torch.no_grad():
            hidden.chunk(2, dim=1)[0].exp_()
        return self.head(hidden)


@pytest.mark.parametrize("kind", [WritesThroughDropout, WritesThroughChunk])
def test_a_write_through_another_name_keeps_what_it_touches(kind):
    model, x = kind().eval(), torch.randn(3, 4)
    gc = sn.GarbageCollector(model, x)
    with torch.no_grad():
        model.first.theta[[1, 4]] = 0
        before = model(x)
        assert gc.collect().removed == {}
        assert torch.equal(model(x), before)
    assert "in place" in gc.explain()
