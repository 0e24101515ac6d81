"""Attention heads, key-value groups and hidden sizes leave, whatever way the forward splits them."""

import copy
import warnings

import pytest
import torch
from networks import kill, outputs, relative, trained_alike
from torch import nn
from torch.nn import functional as F

import shrinknets_fast as sn


class Attention(nn.Module):
    """Heads in every style that public code has. kv: key-value heads."""

    def __init__(self, style, width=16, heads=4, size=4, kv=None):
        super().__init__()
        self.style, self.num_heads, self.kv, self.size = style, heads, kv or heads, size
        if style in ("fused", "split"):
            self.qkv = nn.Linear(width, 3 * heads * size)
        else:
            self.q = nn.Linear(width, heads * size)
            self.k, self.v = (nn.Linear(width, self.kv * size) for _ in range(2))
        self.o = nn.Linear(heads * size, width)
        self.split_size = heads * size

    def heads_of(self, x):
        b, n, _ = x.shape
        if self.style == "fused":
            return self.qkv(x).reshape(b, n, 3, self.num_heads, self.size).permute(2, 0, 3, 1, 4).unbind(0)
        if self.style == "split":
            return (t.view(b, n, -1, self.size).transpose(1, 2) for t in self.qkv(x).split(self.split_size, -1))
        if self.style == "heads written down":
            return (layer(x).view(b, n, 4, -1).transpose(1, 2) for layer in (self.q, self.k, self.v))
        q = self.q(x).view(b, n, self.num_heads, self.size).transpose(1, 2)
        return q, *(layer(x).view(b, n, self.kv, self.size).transpose(1, 2) for layer in (self.k, self.v))

    def forward(self, x):
        q, k, v = self.heads_of(x)
        if self.style == "by hand":
            y = (q @ k.transpose(-1, -2) * self.size**-0.5).softmax(-1) @ v
        elif self.style == "repeated":
            b, h, n, d = k.shape
            k, v = (t[:, :, None].expand(b, h, 2, n, d).reshape(b, h * 2, n, d) for t in (k, v))
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = F.scaled_dot_product_attention(q, k, v, enable_gqa=self.kv != self.num_heads)
        return self.o(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, norm, style, width=16, **sizes):
        super().__init__()
        self.n1, self.n2, self.attention = norm(width), norm(width), Attention(style, width, **sizes)
        self.gate, self.up, self.down = nn.Linear(width, 24), nn.Linear(width, 24), nn.Linear(24, width)

    def forward(self, x):
        x = x + self.attention(self.n1(x))
        y = self.n2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Language(nn.Module):
    def __init__(self, norm=nn.LayerNorm, style="fused", tied=False, width=16, **sizes):
        super().__init__()
        self.tokens, self.places = nn.Embedding(11, width), nn.Parameter(torch.randn(1, 6, width))
        self.blocks = nn.ModuleList(Block(norm, style, width, **sizes) for _ in range(2))
        self.norm, self.head = norm(width), nn.Linear(width, 11, bias=False)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, ids):
        x = self.tokens(ids) + self.places
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class WrittenOut(nn.Module):
    """As Llama has it, or Gemma with an offset."""

    def __init__(self, width, offset=0.0):
        super().__init__()
        self.weight, self.variance_epsilon, self.offset = nn.Parameter(torch.rand(width)), 1e-5, offset

    def forward(self, x):
        y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return y * (self.weight + 1.0) if self.offset else self.weight * y


IDS = torch.randint(0, 11, (3, 6), generator=torch.Generator().manual_seed(0))
STYLES = {
    "fused": {"style": "fused"},
    "fused, as many heads as features": {"style": "fused", "heads": 4, "size": 8},
    "split": {"style": "split"},
    "sizes kept": {"style": "sizes kept", "size": 6},
    "by hand": {"style": "by hand", "size": 6},
    "groups": {"style": "sizes kept", "heads": 6, "kv": 3},
    "groups repeated": {"style": "repeated", "heads": 6, "kv": 3},
    "tied": {"style": "fused", "tied": True},
    "root mean square": {"style": "sizes kept", "norm": nn.RMSNorm, "heads": 6, "kv": 3},
    "written out": {"style": "sizes kept", "norm": WrittenOut},
    "written out, with an offset": {"style": "sizes kept", "norm": lambda width: WrittenOut(width, 1.0)},
}


def language(**options):
    torch.manual_seed(0)
    return Language(**options).double()


@pytest.mark.parametrize("kind", STYLES)
def test_heads_and_hidden_sizes_leave(kind):
    """One theta a head, or a group of heads; one for the trunk, which its norms share."""
    options = STYLES[kind]
    model = language(**options)
    before = outputs(model, IDS)
    sn.add_filters(model, IDS, residual="tied")
    for old, new in zip(before, outputs(model, IDS), strict=True):
        assert relative(new, old) < 1e-12
    units = options.get("kv", options.get("heads", 4))
    found = sn.features(model)
    value = "attention.qkv" if options["style"] in ("fused", "split") else "attention.v"
    assert found[f"blocks.0.{value}"] == (units, units)
    assert (
        len({id(m.theta) for name, m in sn.filters.named_filters(model).items() if "n1" in name or "norm" in name}) == 1
    )
    assert sn.coverage(model, IDS).share == 1.0
    worst, removed = trained_alike(model, (IDS,), lambda y: y.square().mean() + y.sum())
    assert worst < 1e-9
    assert removed["blocks.0.n1"] >= 6 and removed[f"blocks.0.{value}"] >= 1 and removed["blocks.0.gate"] >= 8
    attention = model.blocks[0].attention
    assert (
        attention.o.in_features
        == attention.size * options.get("heads", 4) * sn.features(model)[f"blocks.0.{value}"][1] // units
    )
    plain = sn.fold_filters(model).eval()
    assert relative(plain(IDS), model.eval()(IDS)) < 1e-12
    assert not any(hasattr(m, "theta") for m in plain.modules())
    fresh = sn.add_filters(language(**options), IDS, residual="tied").eval()
    sn.load_state_dict(fresh, model.state_dict())
    assert torch.equal(fresh(IDS), model(IDS))


def test_a_number_of_heads_in_the_code_keeps_them_and_their_width_leaves():
    """view(b, n, 4, -1) takes what is left of three heads for four narrower ones, without an error: seen by its shape."""
    model = sn.add_filters(language(style="heads written down", size=8), IDS, residual="tied")
    assert sn.features(model)["blocks.0.attention.v"] == (8, 8)
    worst, removed = trained_alike(model, (IDS,), lambda y: y.square().mean())
    assert worst < 1e-9 and removed["blocks.0.attention.v"] >= 3
    assert model.blocks[0].attention.q.out_features == 32  # whose width sets the scale


def test_sizes_that_modules_keep_follow_and_are_copied():
    model = sn.add_filters(language(style="sizes kept", heads=6, kv=3), IDS, residual="tied")
    with torch.no_grad():
        model.blocks[0].attention.v.theta[1] = 0
    gc = sn.GarbageCollector(model, IDS)
    gc.collect()
    assert [(b.attention.num_heads, b.attention.kv) for b in model.blocks] == [(4, 2), (6, 3)]
    copied = copy.deepcopy(model)
    with torch.no_grad():
        copied.blocks[1].attention.v.theta[0] = 0
    sn.GarbageCollector(copied, IDS).collect()
    assert [(b.attention.num_heads, b.attention.kv) for b in copied.blocks] == [(4, 2), (4, 2)]
    assert [(b.attention.num_heads, b.attention.kv) for b in model.blocks] == [(4, 2), (6, 3)]


def test_a_refused_collection_leaves_the_sizes():
    model = sn.add_filters(language(style="sizes kept"), IDS, residual="tied")
    gc = sn.GarbageCollector(model, IDS)
    kill(model)
    model.blocks[0].down.weight.grad = torch.zeros(1, dtype=torch.float64).expand(16, 24)[:, :24]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.tokens.weight = nn.Parameter(model.tokens.weight.detach().clone())  # replaced
    with pytest.raises(sn.ShrinkError, match="was replaced since the model was traced"):
        gc.collect()
    assert model.blocks[0].attention.num_heads == 4
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def test_inner_filters_leave_the_trunk_alone():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = sn.add_filters(language(style="fused"), IDS)
    assert set(sn.features(model)) == {f"blocks.{i}.{name}" for i in (0, 1) for name in ("attention.qkv", "gate")}


def test_a_norm_with_attributes_of_any_kind():
    """Tensors, lists and whatever else a module keeps say nothing of what it computes."""

    class Notes(WrittenOut):
        def __init__(self, width):
            super().__init__(width)
            self.seen, self.shapes, self.table = torch.ones(width, 2), ([1], {}), {"a": 1}

    model = sn.add_filters(language(norm=Notes), IDS, residual="tied")
    assert sn.coverage(model, IDS).share == 1.0
