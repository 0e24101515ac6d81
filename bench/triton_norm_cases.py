"""Every kernel of the norms, dtype and choice of blocks, for bench.triton_resources."""

from .triton_linear_cases import Case
from .triton_types import TYPES

ALL = {"RMS": False, "HAS_WEIGHT": True, "HAS_BIAS": True}
BARE_RMS = {"RMS": True, "HAS_WEIGHT": False, "HAS_BIAS": False}
OF_X = ("x", "y", "grad", "dx", "weight", "bias", "theta")
SUMS = ("mean", "rstd", "sums")


def cases():
    from shrinknets_fast.triton_kernels import layer_norm, layer_norm_launch

    for dtype in (d for d in TYPES if d != "tf32"):
        types = dict.fromkeys(OF_X, f"*{TYPES[dtype]}") | dict.fromkeys(SUMS, "*fp32") | {"eps": "fp32"}
        for kernel in (layer_norm.layer_norm_kernel, layer_norm.layer_norm_backward_input_kernel):
            for blocks in layer_norm_launch.ROW_BLOCKS:
                options = layer_norm_launch.options(blocks)
                fixed, launch = {"BLOCK": options.pop("BLOCK")}, options
                yield Case(kernel, dtype, blocks, types, launch, [{**fixed, **flags} for flags in (ALL, BARE_RMS)])
        height, width, warps, stages = blocks = layer_norm_launch.WEIGHT_BLOCK
        fixed, launch = {"BLOCK_M": height, "BLOCK_N": width}, {"num_warps": warps, "num_stages": stages}
        kernel = layer_norm.layer_norm_backward_weight_kernel
        yield Case(kernel, dtype, blocks, types, launch, [{**fixed, "RMS": False}, {**fixed, "RMS": True}])
