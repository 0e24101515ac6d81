"""Compaction: what is dead leaves a tensor, by itself and in a whole model's list of tensors.

fill moves live rows from the tail into the holes (the order changes), slide keeps the order; both work inside the tensor's
storage. Beside ours: index_select dimension by dimension (what everyone does), one two-dimensional gather, fill by eager
indexing, and the bandwidth: copy_ of the whole tensor (the yardstick of the ratios) and of the bytes that survive.
"""

import torch

from .. import adapters
from ..counters import counted
from ..memory import peak_rise
from ..registry import OURS, Case, Provider, family

SHARES = (0.01, 0.1, 0.5)
MODES = {"fill rows": (0,), "slide rows": (0,), "slide both": (0, 1)}


@family
def compaction(options):
    side = 4000 if options.quick else 10000
    for mode, dims in MODES.items():
        for share in SHARES:
            name = f"{mode} of {side}x{side}, {share:.0%} dead"
            work = lambda d=dims, m=mode, s=share: Tensors([(side, side)], d, m, s, options)  # noqa: E731
            yield Case(name, lambda w=work: w().case(), calls=1, fields={"dead": share, "mode": mode})
    count, shape = (60, (64, 64, 3, 3)) if options.quick else (300, (128, 128, 3, 3))
    for share in SHARES:
        name = f"slide both of {count} tensors {'x'.join(map(str, shape))}, {share:.0%} dead"
        work = lambda s=share: Tensors([shape] * count, (0, 1), "slide both", s, options)  # noqa: E731
        yield Case(name, lambda w=work: w().case(), calls=1, fields={"dead": share, "mode": "whole model"})


class Tensors:
    """Tensors to compact, a clean copy of them, and what must be left."""

    def __init__(self, shapes, dims, mode, share, options):
        self.device, self.dims, self.fill = options.device, dims, mode.startswith("fill")
        self.clean = [torch.randn(shape, device=self.device) for shape in shapes]
        # in threes, as a weight and its two moments share their lists
        threes = [[self.survivors(shape[d], share) for d in dims] for shape in shapes[::3]]
        self.kept = [threes[k // 3] for k in range(len(shapes))]
        plan = [
            {d: adapters.places(index.cpu(), shape[d], self.fill) for d, index in zip(dims, lists, strict=True)}
            for shape, lists in zip(shapes[::3], threes, strict=True)
        ]
        self.keep = [plan[k // 3] for k in range(len(shapes))]
        self.whole = [torch.empty_like(tensor).copy_(tensor) for tensor in self.clean]

    def survivors(self, total, share):
        gone = torch.randperm(total, device=self.device)[: max(1, round(share * total))]
        mask = torch.ones(total, dtype=torch.bool, device=self.device)
        mask[gone] = False
        return mask.nonzero().flatten()

    def fresh(self, _=0):
        """The tensors as they were, written and in storages of their own."""
        for tensor, clean in zip(self.whole, self.clean, strict=True):
            if tensor.shape != clean.shape:
                tensor.set_(tensor.untyped_storage(), 0, clean.shape, clean.stride())
            tensor.copy_(clean)
        return self.whole

    def case(self):
        providers = {OURS: adapters.why_no_compact() or self.provider(self.ours, "ours", more=self.counts)}
        if self.fill:
            providers["eager indexing"] = self.provider(self.eager_fill)
        providers["index_select"] = self.provider(self.index_select)
        if len(self.dims) == 2:
            providers["gather w[rows][:, columns]"] = self.provider(self.gather_twice)
            providers["gather w[rows, columns]"] = self.provider(self.gather)
        if self.fill:  # an eager fill moves only what fills the holes; so does the bound
            moved = [self.holes(t, k[0])[0].numel() * t[0].numel() for t, k in zip(self.clean, self.kept, strict=True)]
        else:
            moved = [self.size_left(t, k) for t, k in zip(self.clean, self.kept, strict=True)]
        providers["copy_"] = self.copy([t.numel() for t in self.clean], "plain")
        providers["copy_ of what moves" if self.fill else "copy_ of what survives"] = self.copy(moved, "bound")
        return providers, self.check

    def provider(self, run, role="rival", **more):
        more.setdefault("more", lambda: {"rise_bytes": peak_rise(run, self.device, self.fresh)})
        return Provider(run, role, self.fresh, **more)

    def ours(self, tensors):
        adapters.compact(tensors, self.keep)
        return tensors

    def counts(self):
        found = {"rise_bytes": peak_rise(self.ours, self.device, self.fresh)}
        if self.device.type == "cuda":
            with_copies, copies = (counted(run, self.device) for run in (lambda: self.ours(self.fresh()), self.fresh))
            found |= {key: with_copies[key] - copies[key] for key in copies}
        return found

    def index_select(self, tensors):
        for tensor, kept in zip(tensors, self.kept, strict=True):
            result = tensor
            for d, index in zip(self.dims, kept, strict=True):
                result = result.index_select(d, index)
            tensor.set_(result)
        return tensors

    def gather_twice(self, tensors):
        for tensor, (rows, columns) in zip(tensors, self.kept, strict=True):
            tensor.set_(tensor[rows][:, columns])
        return tensors

    def gather(self, tensors):
        for tensor, (rows, columns) in zip(tensors, self.kept, strict=True):
            tensor.set_(tensor[rows[:, None], columns])
        return tensors

    def eager_fill(self, tensors):
        for tensor, (rows,) in zip(tensors, self.kept, strict=True):
            sources, targets = self.holes(tensor, rows)
            tensor[targets] = tensor[sources]
            tensor.set_(tensor[: len(rows)])
        return tensors

    @staticmethod
    def holes(tensor, rows):
        """(live rows past the new size, dead rows before it)"""
        dead = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
        dead[rows[rows < len(rows)]] = False
        return rows[rows >= len(rows)], dead.nonzero().flatten()

    def size_left(self, tensor, kept):
        left = {d: len(index) for d, index in zip(self.dims, kept, strict=True)}
        return torch.Size(left.get(d, n) for d, n in enumerate(tensor.shape)).numel()

    def copy(self, sizes, role):
        """copy_ of as many elements in one call, between memory that was written before."""
        sources = [clean.flatten()[:n] for clean, n in zip(self.clean, sizes, strict=True)]
        targets = [torch.zeros_like(source) for source in sources]
        return Provider(lambda _: torch._foreach_copy_(targets, sources), role, checked=False)

    def check(self, name, tensors):
        """Bit for bit what indexing gives; after a fill the rows may stand in any order."""
        for tensor, clean, kept in zip(tensors, self.clean, self.kept, strict=True):
            expected = clean
            for d, index in zip(self.dims, kept, strict=True):
                expected = expected.index_select(d, index)
            if self.fill and tensor.shape == expected.shape:
                tensor, expected = (t[in_order(t)] for t in (tensor, expected))
            if not tensor.is_contiguous() or not torch.equal(tensor, expected):
                return False
        return True


def in_order(t):
    """An order of the rows that does not depend on how they stand: by two entries, since one is often there twice."""
    first, second = t.flatten(1)[:, :2].double().unbind(1)
    return (first + 1e-9 * second).argsort()
