"""Measurements: the suite is ``python -m bench --help``; ``bench.zoo`` is the table of torchvision's families."""

import os

# The profiler, which counts memory here, otherwise greets and warns on standard error.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
