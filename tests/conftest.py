import functools
import os
import random
import signal

import interpreter
import pytest
import torch
from emulated import build
from emulated.library import Library

# Workers share the cores: one thread each keeps them from fighting, and two in a single run keep the parallel code tested.
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)
# What torch.empty gives is NaN, so that an output nobody wrote shows up.
torch.utils.deterministic.fill_uninitialized_memory = True

# Without a GPU the Triton kernels are interpreted. Triton reads this when it is first imported, which torch does not do.
INTERPRETED = not torch.cuda.is_available()
if INTERPRETED:
    os.environ["TRITON_INTERPRET"] = "1"
    interpreter.mend()

# By default a GPU's float32 convolutions would multiply in tf32, far from what float32's tests ask for.
torch.backends.cudnn.allow_tf32 = False

# Without a GPU the CUDA kernels run emulated and the Triton kernels interpreted; only a test of the GPU itself is skipped.
CUDA = [] if INTERPRETED else [pytest.param("cuda", marks=pytest.mark.gpu)]


@functools.cache
def emulated():
    """The CUDA kernels, run by the CPU: tests/emulated. Built when it is first asked for."""
    if build.missing():
        pytest.skip(build.missing())
    return Library()


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(params=["cpu", "emulated", *CUDA])
def device(request):
    """Where the package's own ops run; emulated: CUDA's, on tensors of the CPU, in an order that the test's name decides."""
    if request.param != "emulated":
        yield request.param
        return
    emulated().random_schedule(random.Random(request.node.nodeid), 1)
    with emulated().routed():
        yield "cpu"


@pytest.fixture(params=["cpu", *CUDA])
def kernel_device(request):
    """Where Triton kernels run: interpreted on the CPU where there is no GPU, else on it."""
    if request.param == "cpu" and not INTERPRETED:
        pytest.skip("Triton kernels run on the GPU here")
    return request.param


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def ctrl_c():
    """Ctrl-C raises KeyboardInterrupt, also in a process that was started to ignore it (a shell's background job)."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def nan_filled():
    """torch.empty gives NaN inside this test."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
