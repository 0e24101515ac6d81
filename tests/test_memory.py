"""Where the bytes are after a collection: in the memory they had, and nowhere else; what trim gives back."""

import copy
import io
import sys

import pytest
import torch
from networks import conv_net, kill, mlp, outputs, relative

import shrinknets_fast as sn
from shrinknets_fast.graph import order
from shrinknets_fast.memory import trim


def trained(model, x, steps=2):
    optimizer = torch.optim.Adam(model.parameters(), amsgrad=True)
    gc = sn.GarbageCollector(model, x, optimizers=optimizer)
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    return gc, optimizer


def tensors_of(model, optimizer):
    state = [v for p in model.parameters() for v in optimizer.state[p].values() if v.dim()]
    return [*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters()), *state]


def images():
    return torch.randn(4, 1, 14, 14, dtype=torch.float64)


def test_all_stays_in_its_memory_and_is_dense():
    model, x = conv_net(), images()
    gc, optimizer = trained(model, x)
    kill(model)
    held = [(t, t.data_ptr(), t.untyped_storage().nbytes(), t._version) for t in tensors_of(model, optimizer)]
    before = sum(t.nbytes for t, *_ in held)
    collection = gc.collect()
    for t, pointer, size, version in held:
        assert t.is_contiguous() and (t.data_ptr(), t.untyped_storage().nbytes()) == (pointer, size)
        assert t._version >= version
    assert collection.bytes_freed == before - sum(t.nbytes for t, *_ in held) > 0
    assert 0 < collection.bytes_moved <= sum(t.nbytes for t, *_ in held)


def test_a_graph_from_before_a_collection_raises():
    model, x = mlp(width=16), torch.randn(3, 16, dtype=torch.float64)
    gc, _ = trained(model, x)
    loss = model(x).square().sum()
    kill(model)
    gc.collect()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_trim_gives_back_what_is_unused():
    model, x = conv_net(), images()
    gc, optimizer = trained(model, x)
    kill(model)
    freed = gc.collect().bytes_freed
    before, versions = outputs(model, x), [id(p) for p in model.parameters()]
    assert gc.trim(waste=0) == freed and gc.trim(waste=0) == 0
    assert versions == [id(p) for p in model.parameters()]
    for t in tensors_of(model, optimizer):
        assert t.untyped_storage().nbytes() == t.nbytes
    assert all(torch.equal(a, b) for a, b in zip(outputs(model, x), before, strict=True))
    optimizer.zero_grad()
    model(x).square().sum().backward()
    optimizer.step()


def test_trim_leaves_memory_that_others_use_and_small_waste():
    def first(count):
        tensor = torch.arange(100.0)
        return tensor.set_(tensor.untyped_storage(), 0, (count,), (1,))

    shared, alone, nearly = first(10), first(10), first(95)
    other = shared[2:]
    assert trim([shared, alone, nearly], waste=0.1) == 90 * 4
    assert shared.untyped_storage().nbytes() == 400 and nearly.untyped_storage().nbytes() == 400
    assert torch.equal(alone, torch.arange(10.0)) and torch.equal(other, torch.arange(2.0, 10))


def test_a_file_has_no_waste_after_trim():
    def size():
        file = io.BytesIO()
        torch.save(model.state_dict(), file)
        return file.tell()

    model, x = mlp(width=200), torch.randn(3, 16, dtype=torch.float64)
    gc, _ = trained(model, x)
    kill(model, share=0.9)
    full = size()
    gc.collect()
    gc.trim()
    assert size() < 0.2 * full


@pytest.mark.parametrize("waste", [-0.1, 2, "half"])
def test_trim_refuses(waste):
    model, x = mlp(width=16), torch.randn(3, 16, dtype=torch.float64)
    with pytest.raises(sn.ShrinkError, match="waste is"):
        sn.GarbageCollector(model, x).trim(waste)


def test_where_a_fill_saves_much_the_holes_are_filled(monkeypatch):
    """One wide hidden layer: a slide would move nearly all of its rows, a fill moves as many as are dead."""
    monkeypatch.setattr(order, "WORTH_BYTES", 1000)
    model = torch.nn.Sequential(sn.FilteredLinear(50, 400), torch.nn.Linear(400, 3)).double()
    x = torch.randn(4, 50, dtype=torch.float64)
    gc = sn.GarbageCollector(model, x)
    with torch.no_grad():
        model[0].theta[torch.tensor([3, 7, 399])] = 0
    weight, before, seen = model[0].weight.detach().clone(), outputs(model, x), []
    gc.on_removed(lambda name, kept: seen.append((name, kept)))
    collection = gc.collect()
    ((name, kept),) = seen
    expected = list(range(397))
    expected[3], expected[7] = 397, 398
    assert name == "0" and kept.tolist() == expected
    assert torch.equal(model[0].weight, weight[kept])
    assert collection.bytes_moved == 2 * 50 * 8 + 2 * 8 + 2 * 8 + 3 * 397 * 8  # rows, biases, thetas; all of the reader
    assert all(relative(new, old) < 1e-14 for new, old in zip(outputs(model, x), before, strict=True))
    with torch.no_grad():  # and once more, in the new order
        model[0].theta[torch.tensor([0, 3, 100])] = 0
    before = outputs(model, x)
    gc.collect()
    assert all(relative(new, old) < 1e-14 for new, old in zip(outputs(model, x), before, strict=True))


@pytest.mark.parametrize("layer", ["grouped", "concatenated"])
def test_features_whose_places_count_keep_their_order(layer, monkeypatch):
    monkeypatch.setattr(order, "WORTH_SHARE", 0)
    monkeypatch.setattr(order, "WORTH_BYTES", 0)

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first = sn.FilteredConv2d(2, 8, 3)
            self.other = torch.nn.Conv2d(2, 4, 3)
            self.last = torch.nn.Conv2d(8, 6, 1, groups=2) if layer == "grouped" else torch.nn.Conv2d(12, 6, 1)

        def forward(self, x):
            y = self.first(x)
            return self.last(y if layer == "grouped" else torch.cat([y, self.other(x)], 1))

    model, x, seen = Net().double(), torch.randn(2, 2, 5, 5, dtype=torch.float64), []
    gc = sn.GarbageCollector(model, x)
    with torch.no_grad():
        model.first.theta[torch.tensor([1, 5])] = 0
    before = outputs(model, x)
    gc.on_removed(lambda name, kept: seen.append(kept.tolist()))
    assert gc.collect().removed == {"first": 2}
    assert seen == [[0, 2, 3, 4, 6, 7]]
    assert all(relative(new, old) < 1e-14 for new, old in zip(outputs(model, x), before, strict=True))


class Killed(BaseException):
    pass


def test_killed_while_planning_nothing_has_changed():
    """A collection is stopped at the n-th function it calls, for n further and further, until the first byte is moved."""
    model, x = conv_net(), images()
    gc, optimizer = trained(model, x)
    kill(model)
    before = [(t, t.detach().clone(), t.shape, t._version) for t in tensors_of(model, optimizer)]
    sizes = [(m.in_features, m.out_features) for m in model.modules() if isinstance(m, torch.nn.Linear)]

    def killed_at(count):
        calls, moving = 0, False

        def watch(frame, event, arg):
            nonlocal calls, moving
            moving = moving or frame.f_code.co_name == "compact_"
            if event == "call" and not moving and "shrinknets_fast" in frame.f_code.co_filename:
                calls += 1
                if calls == count:
                    sys.setprofile(None)
                    raise Killed

        sys.setprofile(watch)
        try:
            gc.collect()
        except Killed:
            return True
        finally:
            sys.setprofile(None)
        return False

    count, stops = 1, 0
    while killed_at(count):
        stops += 1
        for t, values, shape, version in before:
            assert t.shape == shape and t._version == version and torch.equal(t, values), count
        assert sizes == [(m.in_features, m.out_features) for m in model.modules() if isinstance(m, torch.nn.Linear)]
        assert gc.plan().removed, count
        count = int(count * 1.15) + 1
    assert stops > 20
    assert copy.deepcopy(model)(x).shape == (4, 10) and not gc.collect().removed  # the last one ran to its end


def test_trim_keeps_hooks_that_wait_for_a_gradient():
    """DistributedDataParallel's are on the node that accumulates it, not on the parameter."""
    model, x = conv_net(), images()
    gc, optimizer = trained(model, x)
    kill(model)
    gc.collect()
    called = []
    nodes = [p.expand_as(p).grad_fn.next_functions[0][0] for p in model.parameters()]
    for place, node in enumerate(nodes):
        node.register_hook(lambda *_, place=place: called.append(place))
    assert gc.trim(waste=0) > 0
    model(x).square().sum().backward()
    assert sorted(called) == list(range(len(nodes)))
