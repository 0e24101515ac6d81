"""compact_: the kept positions of many tensors, moved to the front of the memory they already have.

For a tensor w with kept positions R and C along two dimensions (or one)::

    w'[i, j] = w[R[i], C[j]]        dense from w's first byte on, in w's own memory format

Where other columns stay for each of several equal blocks of rows (grouped convolutions), C is a matrix with a row for each block.
``kept`` is ascending (**slide**: stable, one pass over the tensor) or a **fill**: position i holds i itself, or, where i is a
hole, one of the live positions from ``len(kept)`` on, ascending. Along dimension 0 a fill moves as many rows as are dead and
nothing else; see :func:`fill`. Any dtype; any dense tensor, channels-last too, at any offset of its storage. A tensor with gaps
between its elements (stride 0, a slice of columns) gets memory of its own instead.

On the CPU all cores work on all tensors of a call at once; on CUDA a device's tensors take one launch. Source: in-place data
sliding (Gomez-Luna et al., ICPP 2015), with the waits corrected: see csrc/tiles.h.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from ..errors import ShrinkError

_compact_ = torch.ops.shrinknets_fast.compact_


@torch.library.register_fake("shrinknets_fast::compact_")
def _(
    tensors: Sequence[torch.Tensor],
    kept: Sequence[torch.Tensor],
    tensor: Sequence[int],
    dim: Sequence[int],
    index: Sequence[int],
) -> None:
    return None


def fill(kept: torch.Tensor, size: int) -> torch.Tensor:
    """The fill of ``size`` positions of which ``kept`` (ascending) stay: each stays where it is, or goes into a hole."""
    count = len(kept)
    order = torch.arange(count)
    staying = int(torch.searchsorted(kept, count))
    hole = torch.ones(count, dtype=torch.bool)
    hole[kept[:staying]] = False
    order[hole.nonzero().flatten()] = kept[staying:]
    return order


@torch.no_grad()
def compact_(members: Iterable[tuple[torch.Tensor, Mapping[int, torch.Tensor]]]) -> None:
    """members: [(tensor, {dim: kept})], kept: int64 vectors on the CPU, along dimension 1 also a matrix (blocks, kept).
    Resizes the tensors in place; nothing on an error.

    Objects, ``data_ptr()`` and storages stay; version counters go up, so that a graph that saved a tensor raises. Tensors that
    shrink alike (a weight, its gradient, its moments) had better be given one and the same dict: it is looked at once.
    """
    calls: dict[torch.device, list[tuple[torch.Tensor, Layout]]] = {}
    layouts: dict[tuple[int, torch.Size, tuple[int, ...]], Layout] = {}
    apart = []
    for tensor, keep in members:
        if tensor.is_inference():
            raise ShrinkError(
                f"compact_: a tensor of shape {tuple(tensor.shape)} was made in inference mode, it has to stay"
            )
        key = id(keep), tensor.shape, tensor.stride()
        layout = layouts.get(key)
        if layout is None:
            layout = layouts[key] = Layout(tensor, keep)
        if not layout.in_place:
            apart.append((tensor, gathered(tensor, keep)))  # may raise, so before a byte is moved
        elif keep:
            calls.setdefault(tensor.device, []).append((tensor, layout))
    for device in sorted(calls, key=lambda device: device.type == "cpu"):  # last, since a GPU's call may lack memory
        call(calls[device])
    for tensor, result in apart:
        tensor.set_(result)  # type: ignore[call-overload]  # torch declares no set_ of a tensor alone
    for group in calls.values():
        for tensor, layout in group:  # bumps the version
            tensor.set_(tensor.untyped_storage(), tensor.storage_offset(), layout.shape, layout.strides)


class Layout:
    """How tensors of one shape and memory order look afterwards."""

    def __init__(self, tensor: torch.Tensor, keep: Mapping[int, torch.Tensor]) -> None:
        self.in_place = len(keep) <= 2 and is_dense(tensor)
        self.shape = [keep[d].shape[-1] if d in keep else n for d, n in enumerate(tensor.shape)]
        self.strides = dense_strides(tensor, self.shape)
        self.order: list[int] = []  # of the dimensions, outermost first, where they are moved as one
        if self.in_place and 1 in keep and keep[1].dim() > 1:
            self.order = list(range(tensor.dim())) if tensor.is_contiguous() else memory_order(tensor)
            self.in_place = self.order.index(0) < self.order.index(
                1
            )  # else the blocks' columns would overtake each other
            keep = {0: self._as_one(tensor, keep)} if self.in_place else keep
        self.keep = keep.items()

    def _as_one(self, tensor: torch.Tensor, keep: Mapping[int, torch.Tensor]) -> torch.Tensor:
        """The kept positions where the dimensions as far as the later one of the first two are one."""
        self.ends = max(self.order.index(0), self.order.index(1)) + 1
        outer = [tensor.shape[d] if d in self.order[: self.ends] else 1 for d in range(tensor.dim())]
        numbers = torch.empty([outer[d] for d in self.order], dtype=torch.int64)
        torch.arange(numbers.numel(), out=numbers.view(-1))
        inverse = [self.order.index(d) for d in range(tensor.dim())]
        left = gathered(numbers.permute(inverse), keep)
        return left.permute(self.order).flatten()

    def seen(self, tensor: torch.Tensor) -> torch.Tensor:
        """``tensor`` as the op gets it."""
        return tensor.detach().permute(self.order).flatten(0, self.ends - 1) if self.order else tensor


def call(group: Sequence[tuple[torch.Tensor, Layout]]) -> None:
    """One call of the op for tensors of one device; lists that several tensors share are given once."""
    lists: dict[int, tuple[int, torch.Tensor]] = {}
    tensors, dims, indices = [], [], []
    for number, (_, layout) in enumerate(group):
        for dim, kept in layout.keep:
            tensors.append(number)
            dims.append(dim)
            indices.append(lists.setdefault(id(kept), (len(lists), kept))[0])
    _compact_(
        [layout.seen(tensor) for tensor, layout in group], [kept for _, kept in lists.values()], tensors, dims, indices
    )


def is_dense(tensor: torch.Tensor) -> bool:
    """Whether the elements fill one range of memory, in whatever order of the dimensions."""
    if tensor.is_contiguous():
        return True
    expected = 1
    for dim in reversed(memory_order(tensor)):
        if tensor.shape[dim] != 1 and tensor.stride(dim) != expected:
            return False
        expected *= tensor.shape[dim]
    return True


def memory_order(tensor: torch.Tensor) -> list[int]:
    """The dimensions, outermost first."""
    strides = tensor.stride()
    return sorted(range(tensor.dim()), key=lambda d: (-strides[d], -tensor.shape[d]))


def dense_strides(tensor: torch.Tensor, shape: Sequence[int]) -> list[int]:
    """Strides of ``shape``, dense, in the order that ``tensor`` has in memory."""
    order = range(tensor.dim()) if tensor.is_contiguous() else memory_order(tensor)
    strides, step = [0] * len(shape), 1
    for dim in reversed(order):
        strides[dim] = step
        step *= max(shape[dim], 1)
    return strides


def gathered(tensor: torch.Tensor, keep: Mapping[int, torch.Tensor]) -> torch.Tensor:
    """The same out of place: a dense tensor in the memory order of ``tensor``."""
    result = tensor.detach()
    for dim, kept in sorted(keep.items(), reverse=True):  # columns of blocks of rows before the rows
        result = select(result, dim, kept)
    strides = dense_strides(tensor, result.shape)
    return torch.empty_strided(result.shape, strides, dtype=tensor.dtype, device=tensor.device).copy_(result)


def select(tensor: torch.Tensor, dim: int, kept: torch.Tensor, rows: int = 0, first: int = 0) -> torch.Tensor:
    """What stays along one dimension. ``kept`` may be a matrix: ``tensor`` has the rows from ``first`` on of ``rows``."""
    if kept.dim() == 1:
        return tensor.index_select(dim, kept.to(tensor.device))
    block = torch.arange(first, first + len(tensor)) * len(kept) // max(rows or len(tensor), 1)
    columns = kept[block].to(tensor.device)
    return tensor.movedim(dim, 1)[torch.arange(len(tensor), device=tensor.device)[:, None], columns].movedim(1, dim)
