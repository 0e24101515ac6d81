"""Dtypes as the Triton kernels know them, for the cases that bench.triton_resources compiles."""

TYPES = {"float32": "fp32", "tf32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
PRODUCTS = {"float32": "ieee", "tf32": "tf32", "float16": "half", "bfloat16": "half"}
UNIT = {"float32": 4, "tf32": 4, "float16": 8, "bfloat16": 8}
