"""Views, cuts and joins: features change their places."""

import pytest
import torch
from rule_cases import after, image_case, leaves, row_case, stays
from torch import nn


def halves(x):
    n = x.shape[1] // 2
    return x[:, :n] * x[:, n:]


MOVES = {
    "flatten": lambda x: x.flatten(1),
    "flatten pixels": lambda x: x.flatten(2),
    "view": lambda x: x.view(x.shape[0], -1),
    "unflatten pixels": lambda x: x.flatten(2).unflatten(2, (2, 18)),
    "permute": lambda x: x.permute(0, 1, 3, 2),
    "there and back": lambda x: x.permute(0, 2, 3, 1).flatten(1, 2).movedim(-1, 1),
    "transposed": lambda x: x.transpose(1, 3).mT.transpose(1, -2).contiguous() if False else x.transpose(2, 3),
    "squeezed": lambda x: x.mean((2, 3), keepdim=True).squeeze(-1).unsqueeze(2).squeeze(),
    "cat with itself": lambda x: torch.cat([x, x.sin()], 1),
    "cat along pixels": lambda x: torch.cat([x, -x], 2),
    "stack": lambda x: torch.stack([x, 2 * x], 2).flatten(3),
    "stack reduced": lambda x: torch.stack([x, 2 * x]).sum(0),
    "expand": lambda x: x.mean((2, 3), keepdim=True).expand(-1, -1, 3, 3),
    "expand_as": lambda x: x * x.sum(1, keepdim=True).expand_as(x),
    "repeat": lambda x: x.repeat(1, 2, 1, 1),
    "repeat_interleave": lambda x: x.repeat_interleave(3, 1),
    "flip pixels": lambda x: x.flip(2),
    "roll pixels": lambda x: x.roll((1, 2), (2, 3)),
    "pixels cut": lambda x: x[:, :, 1:-1, ::2],
    "one row": lambda x: x[:, :, 2],
    "rows apart": lambda x: x.unbind(2)[1],
    "pixels picked": lambda x: x[:, :, torch.tensor([0, 2, 3])],
    "index_select": lambda x: x.index_select(2, torch.tensor([0, 2])),
    "pixels split": lambda x: x.split([2, 4], 2)[1],
    "triangle": lambda x: x.tril(),
    "cumsum over pixels": lambda x: x.cumsum(2),
    "zeros_like": lambda x: x + torch.zeros_like(x),
    "times ones_like": lambda x: x * torch.ones_like(x),
    "new tensor": lambda x: x * x.new_full((1,), 2.0),
    "stochastic depth": lambda x: x * torch.empty(2, 1, 1, 1, dtype=x.dtype).bernoulli_(1.0).div_(1.0),
    "pixel positions": lambda x: x * torch.arange(6, dtype=x.dtype),
    "chunk": lambda x: x.chunk(2, 1)[0] * x.chunk(2, 1)[1],
    "halves": halves,
    "split in two": lambda x: torch.mul(*x.split(x.shape[1] // 2, 1)),
    "split with sizes": lambda x: torch.mul(*x.split([x.shape[1] // 2] * 2, 1)),
    "narrow": lambda x: x.narrow(1, 0, x.shape[1] // 2) * x.narrow(1, x.shape[1] // 2, x.shape[1] // 2),
    "tensor_split": lambda x: torch.add(*x.tensor_split(2, 1)),
    "glu": nn.GLU(1),
    "heads": lambda x: x.unflatten(1, (2, -1)).sum(1),
    "copy": lambda x: torch.empty_like(x).copy_(x),
    "in place on a half": lambda x: torch.cat([x.chunk(2, 1)[0].relu(), x.chunk(2, 1)[1]], 1),
}


@pytest.mark.parametrize("name", MOVES)
def test_the_dead_leave(name):
    leaves(image_case(MOVES[name]))


KEPT = {
    "flip channels": (lambda x: x.flip(1), "is put in another order by flip"),
    "roll channels": (lambda x: x.roll(1, 1), "is put in another order by roll"),
    "one channel": (lambda x: x + x[:, 1:2], "is cut at fixed positions by slice"),
    "every second channel": (lambda x: x[:, ::2], "is cut at fixed positions by slice"),
    "a channel": (lambda x: x + x[:, 1].unsqueeze(1), "is picked by position in select"),
    "channels apart": (lambda x: torch.stack(x.unbind(1), 1), "is picked by position in unbind"),
    "channels picked": (lambda x: x[:, torch.arange(8)], "is picked by position in index"),
    "unequal split": (
        lambda x: torch.cat(x.split([2, 6], 1)[::-1], 1),
        "is cut at fixed positions by split_with_sizes",
    ),
    "half written down": (lambda x: x[:, :4] * x[:, 4:8], "one feature less: "),
    "half written down, shape hidden": (lambda x: x[:, :4].sum(1, True) - x[:, 4:].amax((1,), True), "slice|amax"),
    "split written down": (lambda x: torch.mul(*x.split(4, 1)[:2]), "one feature less: "),
    "heads written down": (lambda x: x.unflatten(1, (2, 4)).sum(1), "one feature less: "),
    "square split": (lambda x: x.unflatten(1, (4, 2)).sum(1), "which of the two would shrink is not certain"),
    "mixed axes": (lambda x: torch.einsum("bchw,bdhw->bcd", x, x).flatten(1), "is mixed with another axis by flatten"),
    "triangle": (lambda x: x.permute(0, 2, 3, 1).tril().permute(0, 3, 1, 2), "is cut by position in tril"),
    "cumsum": (lambda x: x.cumsum(1), "is added up in order by cumsum"),
    "expand written down": (lambda x: x * x.sum(1, keepdim=True).expand(-1, 8, -1, -1), "one feature less: "),
}


@pytest.mark.parametrize("name", KEPT)
def test_the_dead_stay(name):
    middle, reason = KEPT[name]
    stays(image_case(middle), reason)


def test_channels_cut_from_the_whole():
    """Sizes alone would not show it: the slice keeps its width and slips to other channels."""

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.whole, self.part = nn.Linear(8, 3), nn.Linear(4, 3)

        def forward(self, x):
            return self.whole(x) + self.part(x[..., 2:6])

    stays(row_case(Both(), reader=nn.Linear(3, 3)), "is cut at fixed positions by middle")


def test_a_number_that_hides_behind_a_sum():
    stays(
        row_case(lambda x: x.sum(-1, keepdim=True) / x.shape[-1]),
        r"one feature less: aten.div.Tensor is called with other numbers",
    )
    leaves(row_case(lambda x: x.sum(-1, keepdim=True) / 3))


def test_write_through_a_view():
    def fill(x):
        y = x.clone()
        y[:, :, :3] = 1.0
        return y

    stays(image_case(fill), "writes in place through a view")


def test_a_gate_of_glu_that_is_dead_alone_closes_nothing():
    """sigmoid(0) is a half: the first half goes through it."""
    assert after(*row_case(lambda y: nn.functional.glu(y, -1)), dead=(5, 6))[0] == 0


class TwoReaders(nn.Module):
    """Cut in the middle, and each half read on its own: nothing but the cut ties them."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, y):
        a, b = y.chunk(2, -1)
        return self.first(a) + self.second(b)


@pytest.mark.parametrize(("dead", "count"), [((1, 2), 0), ((1, 2, 5), 2), ((1, 2, 5, 6), 4)])
def test_a_cut_in_the_middle_lets_pairs_leave_alone(dead, count):
    assert after(*row_case(TwoReaders()), dead=dead)[0] == count
