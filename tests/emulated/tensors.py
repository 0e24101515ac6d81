"""Tensors of the fuzz: any dtype, memory order and stride, with NaN, memory that nobody may touch, or nothing around them."""

import ctypes
import mmap
import random

import torch

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
SIZES = (0, 1, 1, 2, 3, 4, 5, 7, 8, 12, 16, 17, 31, 32, 33, 47, 64, 97, 128, 131)
LONG = (255, 256, 257, 1000, 1023, 1024, 1025, 1500, 4096, 5000)
EDGES = (0.0, -0.0, 1e-60, -1e-60, float("inf"), -float("inf"), float("nan"), 6e-8, 1e-45)
PAGE = 4096

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


class Case:
    """One case of the fuzz, all of it drawn from the seed."""

    def __init__(self, seed, library):
        self.draw, self.library, self.checks, self.maps = random.Random(seed), library, [], []
        self.small = library.watched  # accesses are slow to look at, and the kernels' sizes are small
        torch.manual_seed(seed)

    def flat(self, count, dtype):
        """``count`` elements: alone, between sentinels, or beside a page that nobody may touch."""
        kind = self.draw.choice(["plain", "slid", "slid", "low", "high"])
        if kind == "plain" or count == 0:
            return torch.empty(count, dtype=dtype)
        if kind == "slid" or self.library.watched:  # watched: a tensor's ends are known, and a page is no tensor
            return self.between_sentinels(count, dtype)
        size = count * dtype.itemsize
        pages = -(-size // PAGE)
        base = libc.mmap(None, (pages + 2) * PAGE, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
        assert libc.mprotect(base + PAGE, pages * PAGE, mmap.PROT_READ | mmap.PROT_WRITE) == 0
        self.maps.append((base, (pages + 2) * PAGE))
        at = base + PAGE + (pages * PAGE - size if kind == "high" else 0)
        return torch.frombuffer((ctypes.c_char * size).from_address(at), dtype=dtype)

    def between_sentinels(self, count, dtype):
        offset = self.draw.randrange(9)
        numbers = dtype.is_floating_point or dtype.is_complex
        buffer = torch.full((offset + count + 9,), float("nan") if numbers else dtype == torch.bool or 251, dtype=dtype)
        before = buffer.clone()
        around = [slice(0, offset), slice(offset + count, None)]
        self.checks += [(buffer[part], before[part]) for part in around]
        if self.library.watched:
            self.library.forbid(*(buffer[part] for part in around))
        return buffer[offset : offset + count]

    def done(self):
        for part, before in self.checks:
            assert torch.equal(part.view(torch.uint8), before.view(torch.uint8)), "what surrounds a tensor has changed"

    def end(self):
        self.library.forbid_nothing()
        for base, size in self.maps:
            libc.munmap(base, size)

    def shape(self, dims, most):
        if dims > 5:
            return [self.draw.choice([1, 1, 2, 3, 4]) for _ in range(dims)]
        most = most if self.draw.random() < 0.15 else most // 8
        while True:
            shape = [self.draw.choice(SIZES) for _ in range(dims)]
            if self.draw.random() < 0.15:
                shape[self.draw.randrange(dims)] = self.draw.choice(LONG)
            if torch.Size(shape).numel() <= most:
                return shape

    def strided(self, shape, dtype, kind=None):
        """Uninitialized, in some memory order; maybe with gaps or repeats."""
        order = list(range(len(shape)))
        if kind != "padded" and self.draw.random() < 0.6:
            self.draw.shuffle(order)
        outer = [shape[d] for d in order]
        inverse = [order.index(d) for d in range(len(shape))]
        kind = kind or self.draw.choice(["dense"] * 4 + ["gaps", "expanded", "padded"])
        if kind == "dense" or torch.Size(shape).numel() == 0:
            return self.flat(torch.Size(shape).numel(), dtype).view(outer).permute(inverse)
        d = self.draw.randrange(len(shape))
        if kind == "expanded":
            smaller = [1 if i == d else n for i, n in enumerate(outer)]
            return self.flat(torch.Size(smaller).numel(), dtype).view(smaller).expand(outer).permute(inverse)
        if kind == "padded":  # packs of neighbours would fit, but for the distance of rows
            whole = self.flat(torch.Size(outer[:-1]).numel() * (outer[-1] + self.draw.randint(1, 4)), dtype)
            return whole.fill_(float("nan")).view(*outer[:-1], -1)[..., : outer[-1]].permute(inverse)
        step = self.draw.choice([1, 2, 3])
        bigger = [n * step + self.draw.randrange(3) if i == d else n for i, n in enumerate(outer)]
        whole = self.flat(torch.Size(bigger).numel(), dtype).fill_(float("nan")).view(bigger)
        return whole[tuple(slice(0, n * step, step) if i == d else slice(None) for i, n in enumerate(outer))].permute(
            inverse
        )

    def filled(self, t):
        """Random values into t's own memory, repeated elements once."""
        once = t[tuple(slice(0, 1) if s == 0 else slice(None) for s in t.stride())] if 0 in t.stride() else t
        once.copy_(torch.randn(once.shape, dtype=torch.float64))
        return t

    def vector(self, n, dtype):
        if self.draw.random() < 0.2 and n:
            t = self.filled(self.strided([n, self.draw.choice([2, 3])], dtype, "dense"))
            return t[:, self.draw.randrange(t.shape[1])]
        return self.filled(self.flat(n, dtype))

    def theta(self, n, dtype):
        t = self.vector(n, dtype)
        kind = self.draw.choice(["half", "all dead", "none dead", "one", "edges"])
        if kind in ("all dead", "one"):
            t.copy_(-t.abs())
        elif kind == "none dead":
            t.copy_(t.abs() + 0.1)
        elif kind == "edges":
            for i in range(0, n, 3):
                t[i] = self.draw.choice(EDGES)
        if kind == "one" and n:
            t[self.draw.randrange(n)] = 0.7
        return t

    def dtype(self, like=None):
        return like if like is not None and self.draw.random() < 0.6 else self.draw.choice(FLOATS)

    def poison_dead(self, theta, dim, *tensors):
        """Sometimes what is dead holds NaN or infinity."""
        if self.draw.random() < 0.3:
            for t in tensors:
                dead = (theta <= 0).nonzero().flatten()
                if len(dead) and len(theta) == t.shape[dim] and 0 not in t.stride():
                    t.index_fill_(dim, dead, self.draw.choice([float("nan"), float("inf"), -float("inf")]))
