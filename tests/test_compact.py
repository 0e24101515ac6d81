"""compact_ against a gather, bit for bit; what surrounds the tensors; what it refuses."""

import os
import random

import pytest
import torch

from shrinknets_fast import reference
from shrinknets_fast.ops.compact import compact_, fill, is_dense

DTYPES = [torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex128, torch.bool]
SIZES = [0, 1, 2, 3, 7, 8, 16, 17, 31, 64, 97, 131]
CASES, BATCH = 12_000, 1_000  # the smallest number that is asked for is 10,000


def deaths(draw, size):
    """The ascending kept positions of one dimension, in one of the ways features die."""
    kind = draw.choice(["none", "all", "all but one", "random", "alternating", "block", "ends"])
    alive = torch.ones(size, dtype=torch.bool)
    if kind == "all":
        alive[:] = False
    elif kind == "all but one" and size:
        alive[:] = False
        alive[draw.randrange(size)] = True
    elif kind == "random":
        alive = torch.tensor(
            [draw.random() > draw.choice([0.01, 0.1, 0.5, 0.9]) for _ in range(size)], dtype=torch.bool
        )
    elif kind == "alternating":
        alive[draw.randrange(2) :: 2] = False
    elif kind == "block" and size:
        start = draw.randrange(size)
        alive[start : draw.randrange(start, size + 1)] = False
    elif kind == "ends" and size:
        alive[0] = alive[-1] = False
    return torch.nonzero(alive).flatten()


def buried(shape, dtype, draw, device):
    """A dense tensor in some memory order, at some offset of a buffer; returns it and a check of what surrounds it."""
    order = list(range(len(shape)))
    draw.shuffle(order)
    offset, count = draw.randrange(6), torch.Size(shape).numel()
    buffer = torch.randint(0, 2 if dtype == torch.bool else 255, (offset + count + 7,), device=device).to(dtype)
    before = buffer.clone()
    view = (
        buffer[offset : offset + count]
        .view([shape[d] for d in order])
        .permute([order.index(d) for d in range(len(shape))])
    )

    def check():
        assert torch.equal(buffer[:offset], before[:offset]) and torch.equal(
            buffer[offset + count :], before[offset + count :]
        )

    return view, check


def a_case(draw, device):
    """A few tensors, of which some dimensions lose positions."""
    members, checks = [], []
    for _ in range(draw.randint(1, 3)):
        shape = [draw.choice(SIZES[:9] if i else SIZES) for i in range(draw.randint(1, 4))]
        if draw.random() < 0.02:
            shape = [draw.randint(300, 900), draw.randint(300, 900)]  # several tiles
        tensor, check = buried(shape, draw.choice(DTYPES), draw, device)
        keep = {d: deaths(draw, shape[d]) for d in draw.sample(range(len(shape)), min(draw.randint(0, 2), len(shape)))}
        keep = {d: fill(kept, shape[d]) if draw.random() < 0.5 else kept for d, kept in keep.items()}
        members.append((tensor, keep))
        checks.append(check)
    return members, checks


@pytest.mark.parametrize("first", range(0, CASES, BATCH))
def test_random_cases_bit_for_bit(first, device, request):
    on_cpu = request.node.callspec.params["device"] == "cpu"
    for seed in range(first, first + (BATCH if on_cpu else BATCH // 10)):
        draw = random.Random(seed)
        members, checks = a_case(draw, device)
        expected = [reference.compact(tensor, keep) for tensor, keep in members]
        pointers = [(tensor.untyped_storage().data_ptr(), tensor.storage_offset()) for tensor, _ in members]
        compact_(members)
        for (tensor, _), result, pointer, check in zip(members, expected, pointers, checks, strict=True):
            assert torch.equal(tensor, result), seed
            assert (tensor.untyped_storage().data_ptr(), tensor.storage_offset()) == pointer, seed
            check()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("dead", [0.01, 0.1, 0.5])
def test_many_tiles_in_parallel(dtype, dead, device):
    shape = (1501, 1799)
    for repeat in range(3):
        keep = {d: torch.nonzero(torch.rand(n) >= dead).flatten() for d, n in enumerate(shape)}
        for change in (lambda kept, n: kept, fill):
            tensor = torch.randint(0, 2**15, shape, device=device).to(dtype)
            changed = {d: change(kept, shape[d]) for d, kept in keep.items()}
            expected = reference.compact(tensor, changed)
            compact_([(tensor, changed)])
            assert torch.equal(tensor, expected), repeat


def test_tensors_share_a_list(device):
    """A fill alone along rows, the same fill along columns, and both ways at once."""
    kept = fill(torch.tensor([0, 2, 5, 6]), 7)
    members = [(torch.randn(7, 3, device=device), {0: kept}), (torch.randn(3, 7, device=device), {1: kept})]
    members += [(torch.randn(7, device=device), {0: kept}), (torch.randn(7, 7, device=device), {0: kept, 1: kept})]
    expected = [reference.compact(tensor, keep) for tensor, keep in members]
    compact_(members)
    assert all(torch.equal(tensor, e) for (tensor, _), e in zip(members, expected, strict=True))


def test_thousands_of_tensors_in_one_call(device):
    tensors = [torch.randn(1 + i % 7, 1 + i % 5, device=device) for i in range(4000)]
    keep = [{0: torch.arange(0, t.shape[0], 2)} for t in tensors]
    expected = [t[::2].clone() for t in tensors]
    compact_(list(zip(tensors, keep, strict=True)))
    assert all(torch.equal(t, e) for t, e in zip(tensors, expected, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2**31 + 77,), (3, 2**30 + 5), (46341, 46343)])
def test_past_two_to_the_31_elements(shape, device):
    if len(shape) == 1 and os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < 40e9:
        pytest.skip("needs 40 GB of memory: the kept list alone takes 17")
    tensor = (
        torch.arange(251, dtype=torch.uint8).repeat(-(-torch.Size(shape).numel() // 251))[: torch.Size(shape).numel()]
    ).to(device)
    tensor = tensor.view(shape)
    dim = max(range(len(shape)), key=lambda d: shape[d])
    gone = torch.tensor([5, shape[dim] // 2, shape[dim] - 3])
    kept = torch.ones(shape[dim], dtype=torch.bool)
    kept[gone] = False
    kept = torch.nonzero(kept).flatten()
    expected = tensor.index_select(dim, kept.to(device))
    compact_([(tensor, {dim: kept})])
    assert torch.equal(tensor, expected)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_memory_format_stays(layout, device):
    weight = torch.randn(6, 5, 3, 3, device=device).to(memory_format=layout)
    keep = {0: torch.tensor([0, 2, 5]), 1: torch.tensor([1, 4])}
    expected = reference.compact(weight, keep)
    compact_([(weight, keep)])
    assert torch.equal(weight, expected) and weight.is_contiguous(memory_format=layout)
    assert weight.untyped_storage().nbytes() == 6 * 5 * 9 * 4


@pytest.mark.parametrize("make", [lambda: torch.randn(4, 12)[:, ::2], lambda: torch.randn(6).expand(4, 6)])
def test_a_tensor_with_gaps_gets_memory_of_its_own(make):
    tensor = make()
    base = tensor.untyped_storage().data_ptr()
    whole = torch.empty(0).set_(tensor.untyped_storage())
    before, keep = whole.clone(), {0: torch.tensor([1, 3]), 1: torch.tensor([0, 2, 5])}
    expected = reference.compact(tensor, keep)
    compact_([(tensor, keep)])
    assert torch.equal(tensor, expected) and is_dense(tensor)
    assert tensor.untyped_storage().data_ptr() != base and torch.equal(whole, before)


def test_three_dimensions_at_once():
    tensor = torch.randn(5, 6, 7)
    keep = {0: torch.tensor([0, 4]), 1: torch.tensor([1, 2, 5]), 2: torch.tensor([3])}
    expected = reference.compact(tensor, keep)
    compact_([(tensor, keep)])
    assert torch.equal(tensor, expected)


def test_a_fill_moves_nothing_but_the_dead(device):
    kept = fill(torch.tensor([0, 2, 3, 5, 6]), 7)
    assert kept.tolist() == [0, 5, 2, 3, 6]
    assert fill(torch.tensor([], dtype=torch.int64), 3).tolist() == []
    assert fill(torch.arange(4), 4).tolist() == [0, 1, 2, 3]


def test_a_stale_graph_raises():
    weight, x = torch.nn.Parameter(torch.randn(4, 6)), torch.randn(2, 6, requires_grad=True)
    loss, version = torch.nn.functional.linear(x, weight).square().sum(), weight._version
    compact_([(weight, {0: torch.tensor([0, 3])})])
    assert weight._version > version
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_parameter_stays_one_and_takes_gradients_of_its_new_shape():
    weight = torch.nn.Parameter(torch.randn(4, 6))
    (2 * weight).sum().backward()
    weight.grad = None
    compact_([(weight, {1: torch.tensor([0, 3])})])
    (3 * weight).sum().backward()
    assert weight.requires_grad and weight.is_leaf and torch.equal(weight.grad, torch.full((4, 2), 3.0))


def raw(tensors, kept, tensor, dim, index):
    torch.ops.shrinknets_fast.compact_(tensors, kept, tensor, dim, index)


W = torch.arange(12.0).reshape(4, 3)
REFUSED = {
    "kept.0. holds 4, expected positions below 4, the size of dimension 0": ([W], [[0, 4]], [0], [0], [0]),
    "kept.0. holds -1 at position 0": ([W], [[-1, 2]], [0], [0], [0]),
    "kept.0. holds 1 at position 1, expected ascending": ([W], [[1, 1, 2]], [0], [0], [0]),
    "kept.0. holds 0 at position 2, expected ascending": ([W], [[1, 2, 0]], [0], [0], [0]),
    "kept.1. holds 2 at position 1, expected ascending": ([W], [[0], [3, 2]], [0, 0], [0, 1], [0, 1]),
    "dim 2 of tensors.0., expected 0 to 1": ([W], [[0]], [0], [2], [0]),
    "dim 0 of tensors.0. is given twice": ([W], [[0]], [0, 0], [0, 0], [0, 0]),
    "tensor holds 1, expected 0 to 0": ([W], [[0]], [1], [0], [0]),
    "index holds 5, expected 0 to 0": ([W], [[0]], [0], [0], [5]),
    "tensor, dim and index have 1, 2 and 1 entries": ([W], [[0]], [0], [0, 1], [0]),
    "tensors.0. and tensors.1. share memory": ([W, W[1:]], [[0]], [0, 1], [0, 0], [0, 0]),
    "it has gaps": ([W[:, ::2]], [[0]], [0], [0], [0]),
    "loses positions along 3 dimensions": ([W.view(2, 2, 3)], [[0]], [0, 0, 0], [0, 1, 2], [0, 0, 0]),
}


@pytest.mark.parametrize("words", REFUSED)
def test_bad_calls_are_refused_before_any_write(words):
    tensors, kept, *numbers = REFUSED[words]
    before = W.clone()
    with pytest.raises(RuntimeError, match=words):
        raw(tensors, [torch.tensor(k) for k in kept], *numbers)
    assert torch.equal(W, before)


@pytest.mark.parametrize(
    "kept", [torch.tensor([0], dtype=torch.int32), torch.zeros(1, 1, dtype=torch.int64), torch.arange(4)[::2]]
)
def test_kept_is_a_contiguous_int64_vector(kept):
    with pytest.raises(RuntimeError, match="kept.0. has dtype .* expected a contiguous int64 vector on cpu"):
        raw([W.clone()], [kept], [0], [0], [0])


def test_nothing_is_nothing():
    compact_([])
    compact_([(W, {})])
    assert W.shape == (4, 3)


@pytest.mark.parametrize("seed", range(60))
def test_other_columns_for_each_block_of_rows(seed):
    draw = random.Random(seed)
    blocks, rows, columns = draw.randint(2, 4), draw.randint(1, 5), draw.randint(2, 6)
    shape = [blocks * rows, columns, *[draw.randint(1, 3) for _ in range(draw.randint(0, 2))]]
    tensor, check = buried(shape, draw.choice(DTYPES), draw, "cpu")
    left = draw.randint(1, columns)
    table = torch.stack([torch.tensor(sorted(draw.sample(range(columns), left))) for _ in range(blocks)])
    keep = {1: table}
    if draw.random() < 0.6:
        stay = torch.tensor([draw.random() < 0.6 for _ in range(blocks * rows)])
        keep = dict(draw.sample([(0, stay.nonzero().flatten()), (1, table)], 2))
    if draw.random() < 0.3:  # with gaps
        tensor, check = torch.stack([tensor, tensor], -1).contiguous()[..., 0], lambda: None
    expected = torch.stack([row[table[k // rows]] for k, row in enumerate(tensor)])
    expected = expected[keep[0]] if 0 in keep else expected
    compact_([(tensor, keep)])
    assert torch.equal(tensor, expected) and is_dense(tensor)
    check()
