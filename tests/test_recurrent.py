"""LSTM and GRU: the hidden width shrinks, exactly, with all gates, states, layers and directions."""

import copy
import io
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import shrinknets_fast as sn
from shrinknets_fast.companions.guard import Guard
from shrinknets_fast.companions.optimizers import Followed

KINDS = {"LSTM": (nn.LSTM, sn.FilteredLSTM, 4), "GRU": (nn.GRU, sn.FilteredGRU, 3)}
SHAPES = [(1, False, True), (2, False, False), (1, True, True), (2, True, True)]  # layers, bidirectional, batch_first


class Tagger(nn.Module):
    """Embedding, layer, recurrent layer, head over all steps, or over the last state."""

    def __init__(self, kind, layers=1, bidirectional=False, batch_first=True, last=False):
        super().__init__()
        self.embed, self.dense = nn.Embedding(11, 6), nn.Linear(6, 5)
        self.rnn = kind(5, 8, num_layers=layers, bidirectional=bidirectional, batch_first=batch_first)
        self.head, self.last = nn.Linear(8 if last or not bidirectional else 16, 3), last

    def forward(self, x):
        output, state = self.rnn(torch.relu(self.dense(self.embed(x))))
        state = state[0] if isinstance(state, tuple) else state
        return self.head(state[-1] if self.last else output)


def made(*args, seed=0, **options):
    torch.manual_seed(seed)
    model = Tagger(*args, **options).double()
    return model, torch.randint(0, 11, (3, 6), generator=torch.Generator().manual_seed(seed))


def difference(first, second):
    return float((first - second).detach().abs().max())


def train(kind, shape, last, collect):
    model, x = made(kind, *shape, last=last, seed=3)
    sn.add_filters(model, x)
    assert set(sn.features(model)) == {"dense", "rnn"}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02, amsgrad=True)
    gc = sn.GarbageCollector(model, x, optimizers=optimizer) if collect else None
    guard = Guard([Followed(optimizer)], lambda: [] if collect else list(sn.filters.thetas(model).values()))
    target = torch.randn(model(x).shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    losses, removed = [], 0
    for step in range(30):
        if step % 10 == 4:
            for name, count in (("dense", 1), ("rnn", 2)):
                first = {4: 0, 14: 3, 24: 5}[step] % (5 if name == "dense" else 8)
                place = gc.kept(name) if gc else torch.arange(5 if name == "dense" else 8)
                with torch.no_grad():
                    model.get_submodule(name).theta[(place >= first) & (place < first + count)] = 0
        if gc is not None and step % 10 == 7:
            removed += sum(gc.collect().removed.values())
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), target)
        (loss + 0.001 * sn.penalty(model)).backward()
        optimizer.step()
        losses.append(loss.item())
    del guard
    return torch.tensor(losses, dtype=torch.float64), removed, model, optimizer


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", KINDS)
def test_training_is_the_masked_run(name, shape, last):
    kind, filtered, gates = KINDS[name]
    small, removed, model, optimizer = train(kind, shape, last, True)
    masked, *_ = train(kind, shape, last, False)
    assert removed >= 6 and float((small - masked).abs().max()) < 1e-9
    rnn = model.rnn
    assert type(rnn) is filtered and rnn.hidden_size == rnn.theta.numel() < 5 and rnn.input_size < 5
    assert rnn.weight_hh_l0.shape == (gates * rnn.hidden_size, rnn.hidden_size)
    for p, state in optimizer.state.items():
        assert all(t.shape == p.shape for t in state.values() if isinstance(t, torch.Tensor) and t.dim())
    model.eval()
    x = torch.randint(0, 11, (3, 6))
    assert difference(sn.fold_filters(model)(x), model(x)) < 1e-12


@torch.no_grad()
def some_die(layer):
    layer.theta.uniform_(0.3, 1.5)
    layer.theta[[1, 4]] = 0


@pytest.mark.parametrize("name", KINDS)
def test_the_formula_step_by_step(name):
    """Against cells of torch's: s * h is what is read and what comes out."""
    _, filtered, _ = KINDS[name]
    torch.manual_seed(0)
    layer = filtered(3, 6).double()
    some_die(layer)
    cell = {"LSTM": nn.LSTMCell, "GRU": nn.GRUCell}[name](3, 6).double()
    s = layer.theta.detach().clamp(min=0)
    with torch.no_grad():
        for kind in ("weight_ih", "bias_ih", "bias_hh"):
            getattr(cell, kind).copy_(getattr(layer, f"{kind}_l0"))
        cell.weight_hh.copy_(layer.weight_hh_l0 * s)
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    h, state, expected = torch.zeros(2, 6, dtype=torch.float64), torch.zeros(2, 6, dtype=torch.float64), []
    for step in x:
        h = cell(step, (h, state)) if name == "LSTM" else cell(step, h)
        h, state = h if name == "LSTM" else (h, None)
        expected.append(s * h)
    output, given = layer(x)
    assert difference(output, torch.stack(expected)) < 1e-12
    hidden = given[0] if name == "LSTM" else given
    assert torch.equal(hidden[0], output[-1]) and bool((output[..., [1, 4]] == 0).all())


@pytest.mark.parametrize("name", KINDS)
def test_a_sequence_in_two_parts_is_the_whole(name):
    _, filtered, _ = KINDS[name]
    torch.manual_seed(0)
    layer = filtered(3, 6, num_layers=2, bidirectional=False).double()
    some_die(layer)
    x = torch.randn(7, 2, 3, dtype=torch.float64)
    whole, last = layer(x)
    first, state = layer(x[:4])
    second, end = layer(x[4:], state)
    assert difference(torch.cat([first, second]), whole) < 1e-12
    pairs = zip(end, last, strict=True) if name == "LSTM" else [(end, last)]
    assert all(difference(a, b) < 1e-12 for a, b in pairs)
    single, _ = layer(x[:, 0])  # without a batch
    assert difference(single, whole[:, 0]) < 1e-12
    (whole.sum() + second.square().sum()).backward()
    assert bool(torch.isfinite(layer.theta.grad).all()) and bool((layer.theta.grad[[1, 4]] == 0).all())


@pytest.mark.parametrize("name", KINDS)
def test_packed_sequences(name):
    _, filtered, _ = KINDS[name]
    torch.manual_seed(0)
    layer = filtered(3, 6, batch_first=True, bidirectional=True).double()
    some_die(layer)
    x, lengths = torch.randn(3, 5, 3, dtype=torch.float64), [2, 5, 4]
    output, _ = layer(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
    padded, _ = pad_packed_sequence(output, batch_first=True)
    for row, length in enumerate(lengths):
        assert difference(padded[row, :length], layer(x[row, :length])[0]) < 1e-12


class Translator(nn.Module):
    """The decoder starts from the encoder's last state."""

    def __init__(self, kind):
        super().__init__()
        self.encoder, self.decoder, self.head = kind(4, 6), kind(4, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.decoder(x.flip(0), self.encoder(x)[1])[0])


class OwnZeros(nn.Module):
    """The initial state is as wide as a number in the code says."""

    def __init__(self, kind):
        super().__init__()
        self.rnn, self.head = kind(4, 6), nn.Linear(6, 2)

    def forward(self, x):
        zeros = torch.zeros(1, x.shape[1], 6, dtype=x.dtype)
        return self.head(self.rnn(x, (zeros, zeros) if isinstance(self.rnn, nn.LSTM) else zeros)[0])


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("make", [Translator, OwnZeros])
def test_given_states(make, name):
    torch.manual_seed(0)
    model, x = make(KINDS[name][1]).double(), torch.randn(5, 3, 4, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc = sn.GarbageCollector(model, x)
    for module in sn.filters.named_filters(model).values():
        some_die(module)
    before = model(x)
    removed = sum(gc.collect().removed.values())
    assert difference(model(x), before) < 1e-12
    assert removed == (2 if make is Translator else 0)


@pytest.mark.parametrize("name", KINDS)
def test_states_that_leave_the_model_keep_their_width(name):
    class Open(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = KINDS[name][0](4, 6), nn.Linear(6, 2)

        def forward(self, x):
            output, state = self.rnn(x)
            return self.head(output), state

    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="got no filter"):
        assert sn.features(sn.add_filters(Open().double(), torch.randn(5, 3, 4, dtype=torch.float64))) == {}


@pytest.mark.parametrize("name", KINDS)
def test_copies_and_checkpoints(name):
    kind = KINDS[name][0]
    model, x = made(kind, 2, True)
    fresh = sn.add_filters(copy.deepcopy(model), x)
    sn.add_filters(model, x)
    some_die(model.rnn)
    before = model(x)
    assert sn.GarbageCollector(model, x).collect().removed == {"rnn": 2}
    saved = io.BytesIO()
    torch.save(model.state_dict(), saved)
    saved.seek(0)
    sn.load_state_dict(fresh, torch.load(saved))
    assert fresh.rnn.hidden_size == 6 and difference(fresh(x), before) < 1e-12
    assert difference(copy.deepcopy(model)(x), before) < 1e-12


def test_projections_are_refused():
    with pytest.raises(sn.ShrinkError, match="FilteredLSTM: proj_size is 2, expected 0"):
        sn.FilteredLSTM(3, 6, proj_size=2)


def test_weights_in_one_memory_stay_in_a_plain_layer_and_come_apart_in_a_filtered_one():
    model, x = made(nn.LSTM)
    flat = torch.cat([p.detach().flatten() for p in model.rnn.parameters()])
    with torch.no_grad():
        at = 0
        for p in model.rnn.parameters():  # as flatten_parameters does for cuDNN
            p.set_(flat.untyped_storage(), at, p.shape, p.stride())
            at += p.numel()
    sn.add_filters(model, x, exclude=["rnn"])
    before = model(x)
    with torch.no_grad():
        model.dense.theta[2] = 0
    after = model(x)
    gc = sn.GarbageCollector(model, x)
    assert gc.collect().removed == {} and "lies in one memory" in gc.explain()
    assert difference(model(x), after) < 1e-12 and difference(before, after) > 0
    sn.add_filters(model, x)
    gc = sn.GarbageCollector(model, x)
    some_die(model.rnn)
    after = model(x)
    assert gc.collect().removed == {"dense": 1, "rnn": 2}
    assert difference(model(x), after) < 1e-12
