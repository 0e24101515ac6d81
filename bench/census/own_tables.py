"""Hand-written networks of graphs, points, tables and coordinates."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from .own_sequences import reals, tokens


class GraphNet(nn.Module):
    """Graph convolutions with a dense normalised adjacency."""

    def __init__(self):
        super().__init__()
        self.layers, self.head = nn.ModuleList([nn.Linear(8, 32), nn.Linear(32, 32)]), nn.Linear(32, 4)

    def forward(self, x, adjacency):
        for layer in self.layers:
            x = torch.relu(adjacency @ layer(x))
        return self.head(x.mean(1))


class GraphAttention(nn.Module):
    def __init__(self, c=16):
        super().__init__()
        self.body, self.source, self.target, self.head = (
            nn.Linear(8, c),
            nn.Linear(c, 1),
            nn.Linear(c, 1),
            nn.Linear(c, 4),
        )

    def forward(self, x, adjacency):
        x = self.body(x)
        scores = F.leaky_relu(self.source(x) + self.target(x).transpose(1, 2), 0.2)
        scores = scores.masked_fill(adjacency == 0, -1e9)
        return self.head(F.elu(torch.softmax(scores, -1) @ x))


class DeepFM(nn.Module):
    """Embeddings of fields, their products, and a network on all of them."""

    def __init__(self, fields=4, c=8):
        super().__init__()
        self.embed = nn.ModuleList([nn.Embedding(10, c) for _ in range(fields)])
        self.deep = nn.Sequential(nn.Linear(fields * c, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, x):
        found = torch.stack([embed(x[:, k]) for k, embed in enumerate(self.embed)], 1)
        pairs = (found.sum(1).square() - found.square().sum(1)).sum(1, keepdim=True) * 0.5
        return self.deep(found.flatten(1)) + pairs


class PointNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(3, 32, 1), nn.BatchNorm1d(32), nn.ReLU(), nn.Conv1d(32, 64, 1), nn.BatchNorm1d(64), nn.ReLU()
        )
        self.head = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 6))

    def forward(self, x):
        return self.head(self.body(x).max(2).values)


class DuelingQ(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.value, self.advantage = nn.Linear(6, 48), nn.Linear(48, 1), nn.Linear(48, 4)

    def forward(self, x):
        x = torch.relu(self.body(x))
        advantage = self.advantage(x)
        return self.value(x) + advantage - advantage.mean(1, keepdim=True)


class Physics(nn.Module):
    """A network of sine features, as for differential equations and signed distances."""

    def __init__(self):
        super().__init__()
        self.layers, self.head = nn.ModuleList([nn.Linear(2, 32), nn.Linear(32, 32)]), nn.Linear(32, 1)

    def forward(self, x):
        for layer in self.layers:
            x = torch.sin(math.pi * layer(x))
        return self.head(x)


def mlp():
    return nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))


def tabular():
    block = lambda a, b: nn.Sequential(nn.Linear(a, b), nn.BatchNorm1d(b), nn.PReLU(b))  # noqa: E731
    return nn.Sequential(block(20, 48), block(48, 48), nn.Dropout(0.3), nn.Linear(48, 1))


def graph():
    adjacency = (torch.rand(2, 6, 6) < 0.5).float() + torch.eye(6)
    return reals(6, 8), adjacency / adjacency.sum(-1, keepdim=True)


MODELS = {
    "mlp": lambda: (mlp(), reals(20)),
    "tabular": lambda: (tabular(), torch.randn(8, 20)),
    "deep_fm": lambda: (DeepFM(), tokens(4, 10)),
    "graph_convolution": lambda: (GraphNet(), graph()),
    "graph_attention": lambda: (GraphAttention(), graph()),
    "point_net": lambda: (PointNet(), reals(3, 16)),
    "dueling_q": lambda: (DuelingQ(), reals(6)),
    "sine_network": lambda: (Physics(), reals(2)),
}
