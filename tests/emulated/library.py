"""The emulated CUDA kernels as Python sees them: their ops, how their threads interleave, what they did."""

import contextlib
import ctypes
import warnings

import torch

from .build import build

OPS = ("fold", "fold_backward", "filter", "filter_backward", "aliveness", "bury_", "compact_")
COUNTERS = (
    "launches",
    "blocks",
    "switches",
    "barriers",
    "exchanges",
    "sleeps",
    "copies",
    "atomics",
    "preemptions",
    "accesses",
)
POLICIES = ("in turn", "random", "priorities", "starved")  # of blocks; starved: who took the lowest tickets goes last
ORDERS = ("ascending", "descending", "shuffled", "any")  # in which blocks start


class Library:
    """One kind of build; a process can load one only, since they register the same ops."""

    def __init__(self, kind="plain"):
        path = build(kind)
        torch.ops.load_library(str(path))
        self.kind, self.path, self.dll = kind, path, ctypes.CDLL(str(path))
        self.dll.emulated_forbid.argtypes = [ctypes.c_uint64, ctypes.c_size_t]
        self.dll.emulated_complaint.restype = ctypes.c_char_p
        self.watched = kind == "watched"
        self.schedule()

    def schedule(
        self, seed=1, policy="in turn", resident=0, order="ascending", preempt=0, freeze=0, lazy=2, watch=True
    ):
        """How the threads of the next launches interleave; csrc's Options (emulator.h) say what the numbers mean."""
        numbers = (POLICIES.index(policy), resident, ORDERS.index(order), preempt, freeze, lazy)
        self.dll.emulated_options(ctypes.c_uint64(seed), *numbers, int(watch and self.watched))

    def random_schedule(self, draw, seed):
        policy = draw.choice(["in turn", "random", "random", "priorities", "starved"])
        self.schedule(
            seed,
            policy,
            draw.choice([0, 1, 2, 3, 8]),
            draw.choice(ORDERS),
            0 if policy == "in turn" else draw.choice([0, 0, 3, 20]),
            0 if policy == "in turn" else draw.choice([0, 10, 100, 1000]),
            draw.choice([0, 1, 2]),
        )

    def call(self, name, *args, **kwargs):
        """An op; what the library could not throw is thrown here."""
        result = getattr(torch.ops.shrinknets_fast_emulated, name)(*args, **kwargs)
        complaint = self.dll.emulated_complaint().decode()
        if complaint:
            raise RuntimeError(complaint)
        return result

    def counters(self):
        values = (ctypes.c_uint64 * len(COUNTERS))()
        self.dll.emulated_counters(values)
        return dict(zip(COUNTERS, values, strict=True))

    @contextlib.contextmanager
    def capturing(self):
        """Inside, the stream says that it is captured into a CUDA graph."""
        self.dll.emulated_capture(True)
        try:
            yield
        finally:
            self.dll.emulated_capture(False)

    @contextlib.contextmanager
    def routed(self):
        """Inside, the package's own ops are these, for tensors on the CPU."""
        library = torch.library.Library("shrinknets_fast", "IMPL")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that the kernels for the CPU are replaced
                for name in OPS:
                    library.impl(name, self.kernel(name), "CPU", allow_override=True)
            yield
        finally:
            library._destroy()

    def kernel(self, name):
        def call(*args, **kwargs):
            return self.call(name, *args, **kwargs)

        return call

    def install_allocator(self):
        """From here on every tensor is memory that the watcher knows."""
        self.dll.emulated_install_allocator()

    def forbid(self, *tensors):
        """No kernel may touch the memory of these dense tensors."""
        for t in tensors:
            self.dll.emulated_forbid(t.data_ptr(), t.numel() * t.element_size())

    def forbid_nothing(self):
        self.dll.emulated_forbid_nothing()
