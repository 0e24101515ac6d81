"""Measurements: the suite is ``python -m bench --help``; ``bench.zoo`` is the table of torchvision's families."""

import os

os.environ.setdefault(
    "KINETO_LOG_LEVEL", "99"
)  # the profiler, which counts memory here, greets on standard error otherwise
