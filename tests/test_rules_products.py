"""Sums, norms, means, products of activations, attention."""

import math

import pytest
import torch
import torch.nn.functional as F
from rule_cases import image_case, leaves, row_case, stays
from torch import nn

SUMS = {
    "sum": lambda x: x.sum(-1, keepdim=True),
    "sum of all": lambda x: x.sum().reshape(1),
    "norm": lambda x: x.norm(dim=-1, keepdim=True),
    "norm 1": lambda x: torch.linalg.vector_norm(x, 1, -1, keepdim=True),
    "norm inf": lambda x: torch.linalg.vector_norm(x, math.inf, -1, keepdim=True),
    "normalize": lambda x: F.normalize(x, dim=-1),
    "mean of tokens": lambda x: x.mean(1),
    "max of tokens": lambda x: x.max(1)[0],
    "amax of tokens": lambda x: x.amax(1),
    "std of tokens": lambda x: x.std(1),
    "var_mean of tokens": lambda x: torch.var_mean(x, 1)[1],
    "softmax over tokens": lambda x: x.softmax(1) * x,
    "any": lambda x: (x > 0).any(-1, keepdim=True).double() + x.sum(-1, True),
    "gram": lambda x: x @ x.mT,
    "gram by einsum": lambda x: torch.einsum("bnc,bmc->bnm", x, x.cos()),
    "bilinear form by einsum": lambda x: torch.einsum("bnc,bnc->bn", x, x).unsqueeze(-1),
    "bmm": lambda x: torch.bmm(x.transpose(1, 2), x).sum(1) if False else torch.bmm(x, x.sin().transpose(1, 2)),
    "mixed tokens": lambda x: torch.randn(5, 5, dtype=x.dtype, generator=torch.Generator().manual_seed(0)) @ x,
    "tokens by einsum": lambda x: torch.einsum("bnc,bmc,bmd->bnd", x, x.cos(), x),
    "baddbmm": lambda x: torch.baddbmm(x, x @ x.mT, x),
    "addmm": lambda x: torch.addmm(x[0], x[1] @ x[1].t(), x[0]).unsqueeze(0),
    "mv": lambda x: torch.mv(x[0], x[1, 0]).reshape(1, 5),
    "outer": lambda x: torch.outer(x[0, 0], x[1, 1]).sum(0, keepdim=True),
}


@pytest.mark.parametrize("name", SUMS)
def test_the_dead_leave(name):
    if "mixed tokens" in name:

        class Mix(nn.Module):
            def __init__(self):
                super().__init__()
                self.mix = nn.Parameter(torch.randn(5, 5))

            def forward(self, x):
                return self.mix @ x

        leaves(row_case(Mix()))
    else:
        leaves(row_case(SUMS[name]))


KEPT = {
    "mean": (lambda x: x.mean(-1, keepdim=True), "is averaged by mean, which counts its features"),
    "mean of all": (lambda x: x.mean().reshape(1), "is averaged by mean, which counts its features"),
    "std": (lambda x: x.std(-1, keepdim=True), "is averaged by std, which counts its features"),
    "amax": (lambda x: x.amax(-1, keepdim=True), "is compared with others by amax"),
    "min": (lambda x: x.min(-1, keepdim=True)[0], "is compared with others by min"),
    "norm -inf": (
        lambda x: torch.linalg.vector_norm(x, -math.inf, -1, keepdim=True),
        "is compared with others by linalg_",
    ),
    "norm 0.0 counts": (lambda x: torch.linalg.vector_norm(x, 0, -1, keepdim=True), "linalg_vector_norm"),
    "prod": (lambda x: x.prod(-1, keepdim=True), "is compared with others by prod"),
    "logsumexp": (lambda x: x.logsumexp(-1, keepdim=True), "is compared with others by logsumexp"),
    "argmax": (lambda x: x.argmax(-1, keepdim=True).double() + x.sum(-1, True), "is compared with others by argmax"),
    "softmax": (lambda x: x.softmax(-1), "is mixed with others by softmax"),
    "log_softmax": (lambda x: x.log_softmax(-1), "is mixed with others by log_softmax"),
    "topk": (lambda x: x.topk(3)[0], "is read by topk, which needs all of it"),
    "sort": (lambda x: x.sort(-1)[0], "is compared with others by sort"),
    "cdist": (lambda x: torch.cdist(x, x), "is read by cdist"),
    "scaled gram": (
        lambda x: x @ x.mT / x.shape[-1] ** 0.5,
        "one feature less: aten.div.Tensor is called with other numbers",
    ),
}


@pytest.mark.parametrize("name", KEPT)
def test_the_dead_stay(name):
    middle, reason = KEPT[name]
    stays(row_case(middle), reason)


class Attention(nn.Module):
    """Attention from linear layers; ``heads`` follow the width."""

    def __init__(self, core, width=8, heads=2):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(6, width) for _ in range(3))
        self.core, self.heads = core, heads

    def forward(self, x):
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        return self.core(q, k, v).transpose(1, 2).flatten(2)


def by_hand(q, k, v):
    return (0.3 * (q @ k.transpose(-2, -1))).softmax(-1) @ v


def scaled_by_hand(q, k, v):
    return (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(-1) @ v


def fused(q, k, v):
    return F.scaled_dot_product_attention(q, k, v)


def fused_scaled(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, scale=0.3)


class Attended(nn.Module):
    """x -> attention with a filter on one of its three layers -> reader."""

    def __init__(self, core, which):
        super().__init__()
        import shrinknets_fast as sn

        torch.manual_seed(0)
        self.attention, self.reader = Attention(core), nn.Linear(8, 3)
        setattr(self.attention, which, sn.FilteredLinear(6, 8, init=0.7))
        self.first = getattr(self.attention, which)

    def forward(self, x):
        return self.reader(self.attention(x))


@pytest.mark.parametrize("core", [by_hand, scaled_by_hand, fused, fused_scaled])
@pytest.mark.parametrize("which", ["query", "key", "value"])
def test_attention(core, which):
    case = Attended(core, which).double(), torch.randn(2, 5, 6, dtype=torch.float64)
    if which != "value" and core in (fused, scaled_by_hand):
        stays(
            case,
            "sets the scale of attention"
            if core is fused
            else "one feature less: aten.div.Tensor is called with other numbers",
        )
        return
    leaves(case)  # (1, 2) in one head, (5, 6) in the other: equal places
    other = {"query": "key", "key": "query", "value": "value"}[which]
    assert getattr(case[0].attention, other).out_features == 4


def test_attention_keeps_unequal_heads():
    case = Attended(fused, "value").double(), torch.randn(2, 5, 6, dtype=torch.float64)
    leaves(case, 2, dead=(0, 1, 4, 7))


def test_multihead_attention_is_kept():
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.mha = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            return self.mha(x, x, x, need_weights=False)[0]

    stays(row_case(Wrapped()), "is read by middle.mha: nn.MultiheadAttention mixes its features")


def test_an_op_without_a_rule():
    stays(image_case(lambda x: torch.fft.fft2(x).real), "reaches .*fft.*, an op without a rule", warns=True)
