"""Which elements a Triton kernel touches: the interpreter looks at every load and store, which must lie in one of its tensors."""

import contextlib

import numpy as np
import torch


class OutOfBounds(AssertionError):
    pass


def addresses(t):
    """Of all its elements, sorted: what lies between its rows is not its own."""
    found = np.zeros(1, dtype=np.int64)
    for size, stride in zip(t.shape, t.stride(), strict=True):
        found = (found[:, None] + np.arange(size, dtype=np.int64) * stride).reshape(-1)
    return np.unique(found * t.element_size() + t.data_ptr()).astype(np.uint64)


@contextlib.contextmanager
def watched():
    """Inside, an interpreted kernel that touches anything but elements of its arguments fails. Yields the counts it keeps."""
    from triton.runtime.interpreter import GridExecutor, InterpreterBuilder

    counts, allowed = {"launches": 0, "accesses": 0}, [np.zeros(0, dtype=np.uint64)]
    plain = GridExecutor._init_args_hst, InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def arguments(self, args, kwargs):
        result = plain[0](self, args, kwargs)
        tensors = [a for a in (*result[0], *result[1].values()) if isinstance(a, torch.Tensor)]
        allowed[0] = np.unique(np.concatenate([addresses(t) for t in tensors]))
        counts["launches"] += 1
        return result

    def check(what, pointers, mask):
        touched = pointers.data[np.broadcast_to(mask.data, pointers.data.shape)].astype(np.uint64).reshape(-1)
        counts["accesses"] += len(touched)
        places = np.searchsorted(allowed[0], touched)
        inside = np.append(allowed[0], 0)[places] == touched
        if not inside.all():
            raise OutOfBounds(f"a {what} touches {int((~inside).sum())} elements of none of the kernel's tensors")

    def load(self, pointers, mask, *rest):
        check("load", pointers, mask)
        return plain[1](self, pointers, mask, *rest)

    def store(self, pointers, value, mask, *rest):
        check("store", pointers, mask)
        return plain[2](self, pointers, value, mask, *rest)

    def put(functions):
        GridExecutor._init_args_hst = functions[0]
        InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store = functions[1:]

    put((arguments, load, store))
    try:
        yield counts
    finally:
        put(plain)


class Fence:
    """Tensors in the midst of NaN: around them, and between their rows."""

    def __init__(self):
        self.buffers = []

    def put(self, t):
        """A copy of ``t`` with the order of its dimensions, where each but the innermost has a gap."""
        order = sorted(range(t.dim()), key=lambda d: (t.stride(d), d == 0))
        strides, step = [0] * t.dim(), 1
        for d in order:
            strides[d] = step
            step = step * t.shape[d] + 3
        buffer = torch.full((step + 64,), float("nan"), dtype=t.dtype, device=t.device)
        view = buffer.as_strided(t.shape, strides, 32)
        view.copy_(t)
        self.buffers.append((buffer, view))
        return view

    def check(self):
        for buffer, view in self.buffers:
            around = buffer.clone()
            around.as_strided(view.shape, view.stride(), 32).fill_(float("nan"))
            assert around.isnan().all()
