"""What the machine is, a line each; "capability 9.0" only where torch sees a GPU. Needs nothing but torch."""

import platform
import shutil

import torch

print("python", platform.python_version())
print("torch", torch.__version__)
for tool in ("nvcc", "ninja", "cmake", "compute-sanitizer"):
    print(tool, shutil.which(tool) or "missing")
if torch.cuda.is_available():
    properties = torch.cuda.get_device_properties(0)
    print("gpu", properties.name)
    print(f"capability {properties.major}.{properties.minor}")
    print("cache", properties.L2_cache_size)
else:
    print("gpu none")
