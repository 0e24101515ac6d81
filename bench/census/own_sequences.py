"""Hand-written networks of sequences."""

import torch
from torch import nn
from torch.nn import functional as F


class Recurrent(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.embed = nn.Embedding(40, 16)
        self.body = kind(16, 32, num_layers=2, batch_first=True, **options)
        self.head = nn.Linear(64 if options.get("bidirectional") else 32, 40)

    def forward(self, tokens):
        return self.head(self.body(self.embed(tokens))[0])


class Cells(nn.Module):
    """A recurrence written out by hand."""

    def __init__(self):
        super().__init__()
        self.inside, self.again, self.head = nn.Linear(8, 24), nn.Linear(24, 24), nn.Linear(24, 3)

    def forward(self, x):
        state = torch.zeros(x.shape[0], 24, dtype=x.dtype)
        for t in range(x.shape[1]):
            state = torch.tanh(self.inside(x[:, t]) + self.again(state))
        return self.head(state)


class Seq2Seq(nn.Module):
    """GRU encoder, GRU decoder with dot-product attention."""

    def __init__(self):
        super().__init__()
        self.source, self.target = nn.Embedding(30, 16), nn.Embedding(30, 16)
        self.encode, self.decode = nn.GRU(16, 24, batch_first=True), nn.GRU(16, 24, batch_first=True)
        self.merge, self.head = nn.Linear(48, 32), nn.Linear(32, 30)

    def forward(self, source, target):
        memory, state = self.encode(self.source(source))
        x, _ = self.decode(self.target(target), state)
        context = torch.softmax(x @ memory.transpose(1, 2), -1) @ memory
        return self.head(torch.tanh(self.merge(torch.cat([x, context], -1))))


class TCN(nn.Module):
    """Dilated causal convolutions with weight norm, cut back to the length."""

    def __init__(self, c=16):
        super().__init__()
        norm = nn.utils.parametrizations.weight_norm
        self.convs = nn.ModuleList(
            [norm(nn.Conv1d(4 if k == 0 else c, c, 3, dilation=2**k, padding=2 * 2**k)) for k in range(3)]
        )
        self.skip, self.head = nn.Conv1d(4, c, 1), nn.Linear(c, 5)

    def forward(self, x):
        length = x.shape[2]
        for k, conv in enumerate(self.convs):
            x = torch.relu(conv(x)[:, :, :length]) + (self.skip(x) if k == 0 else x)
        return self.head(x[:, :, -1])


class WaveNet(nn.Module):
    """Gated dilated convolutions with residuals and skips."""

    def __init__(self, c=16):
        super().__init__()
        self.first = nn.Conv1d(1, c, 1)
        self.gates = nn.ModuleList([nn.Conv1d(c, 2 * c, 2, dilation=2**k) for k in range(3)])
        self.residual = nn.ModuleList([nn.Conv1d(c, c, 1) for _ in range(3)])
        self.skip = nn.ModuleList([nn.Conv1d(c, 2 * c, 1) for _ in range(3)])
        self.head = nn.Sequential(nn.ReLU(), nn.Conv1d(2 * c, 2 * c, 1), nn.ReLU(), nn.Conv1d(2 * c, 16, 1))

    def forward(self, x):
        x, total = self.first(x), 0
        for k, (gates, residual, skip) in enumerate(zip(self.gates, self.residual, self.skip, strict=True)):
            a, b = gates(F.pad(x, (2**k, 0))).chunk(2, 1)
            h = torch.tanh(a) * torch.sigmoid(b)
            x, total = x + residual(h), total + skip(h)
        return self.head(total)


class Experts(nn.Module):
    """A soft mixture: all experts run, the router weighs them."""

    def __init__(self, c=16, experts=4):
        super().__init__()
        self.router = nn.Linear(c, experts)
        self.experts = nn.ModuleList(
            [nn.Sequential(nn.Linear(c, 2 * c), nn.ReLU(), nn.Linear(2 * c, c)) for _ in range(experts)]
        )
        self.head = nn.Linear(c, 3)

    def forward(self, x):
        weights = torch.softmax(self.router(x), -1)
        return self.head(x + sum(weights[:, k : k + 1] * expert(x) for k, expert in enumerate(self.experts)))


class StackedExperts(nn.Module):
    """Experts as one tensor each, the best two of them by a mask."""

    def __init__(self, c=16, experts=4):
        super().__init__()
        self.router = nn.Linear(c, experts, bias=False)
        self.up = nn.Parameter(torch.randn(experts, c, 2 * c) * 0.2)
        self.down = nn.Parameter(torch.randn(experts, 2 * c, c) * 0.2)
        self.head = nn.Linear(c, 3)

    def forward(self, x):
        scores = self.router(x)
        best = scores.topk(2, -1).indices
        weights = torch.softmax(scores.masked_fill(torch.ones_like(scores).scatter(-1, best, 0) > 0, -1e9), -1)
        hidden = F.gelu(torch.einsum("bc,ecf->ebf", x, self.up))
        return self.head(x + torch.einsum("ebf,efc,be->bc", hidden, self.down, weights))


class NanoGPT(nn.Module):
    """Decoder blocks by hand: fused qkv, causal attention, tied embedding."""

    def __init__(self, c=32, heads=4):
        super().__init__()
        self.heads = heads
        self.tokens, self.places = nn.Embedding(50, c), nn.Embedding(12, c)
        block = lambda: nn.ModuleDict(  # noqa: E731
            {
                "norm1": nn.LayerNorm(c), "qkv": nn.Linear(c, 3 * c), "out": nn.Linear(c, c), "norm2": nn.LayerNorm(c),
                "up": nn.Linear(c, 4 * c), "down": nn.Linear(4 * c, c)
            }
        )  # fmt: skip
        self.blocks = nn.ModuleList([block() for _ in range(2)])
        self.norm, self.head = nn.LayerNorm(c), nn.Linear(c, 50, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, tokens):
        b, t = tokens.shape
        x = self.tokens(tokens) + self.places(torch.arange(t))
        for block in self.blocks:
            qkv = block["qkv"](block["norm1"](x)).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(*qkv.unbind(0), is_causal=True)
            x = x + block["out"](y.transpose(1, 2).reshape(b, t, -1))
            x = x + block["down"](F.gelu(block["up"](block["norm2"](x))))
        return self.head(self.norm(x))


class SwiGLU(nn.Module):
    """A Llama's feed-forward part with an RMS norm written out."""

    def __init__(self, c=24):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(c))
        self.first, self.gate, self.up, self.down, self.head = (
            nn.Linear(a, b) for a, b in ((8, c), (c, 64), (c, 64), (64, c), (c, 5))
        )

    def forward(self, x):
        x = self.first(x)
        normed = self.scale * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
        return self.head(x + self.down(F.silu(self.gate(normed)) * self.up(normed)))


class TextCNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.convs, self.head = nn.ModuleList([nn.Conv1d(16, 12, k) for k in (2, 3, 4)]), nn.Linear(36, 3)

    def forward(self, tokens):
        x = self.embed(tokens).transpose(1, 2)
        return self.head(torch.cat([torch.relu(conv(x)).amax(2) for conv in self.convs], 1))


def torch_transformer():
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    return nn.TransformerEncoder(layer, 2)


def reals(*shape):
    return torch.randn(2, *shape)


def tokens(length=8, vocabulary=30):
    return torch.randint(1, vocabulary, (2, length))


MODELS = {
    "lstm": lambda: (Recurrent(nn.LSTM), tokens()),
    "lstm_bidirectional": lambda: (Recurrent(nn.LSTM, bidirectional=True), tokens()),
    "gru": lambda: (Recurrent(nn.GRU), tokens()),
    "rnn_by_hand": lambda: (Cells(), reals(5, 8)),
    "seq2seq": lambda: (Seq2Seq(), (tokens(), tokens(6))),
    "tcn": lambda: (TCN(), reals(4, 20)),
    "wavenet": lambda: (WaveNet(), reals(1, 20)),
    "experts_soft": lambda: (Experts(), reals(16)),
    "experts_stacked": lambda: (StackedExperts(), reals(16)),
    "nano_gpt": lambda: (NanoGPT(), tokens()),
    "swiglu": lambda: (SwiGLU(), reals(8)),
    "torch_transformer": lambda: (torch_transformer(), reals(6, 32)),
    "text_cnn": lambda: (TextCNN(), tokens()),
}
