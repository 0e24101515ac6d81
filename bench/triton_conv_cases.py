"""Every convolution kernel, dtype, choice of blocks and way to read tensors, for bench.triton_resources."""

from dataclasses import dataclass

from shrinknets_fast.triton_kernels.blocks import launch_options

from .triton_types import PRODUCTS, TYPES, UNIT

OF_X = ("grad", "out", "x", "dx")
PARAMETERS = ("weight", "bias", "dweight", "dbias")
SUMS = ("theta", "dtheta", "sums", "bias_sums")
STRIDES = {
    "x_strides": 5,
    "weight_strides": 5,
    "dx_strides": 5,
    "dweight_strides": 5,
    "grad_strides": 3,
    "out_strides": 3,
}
PLAIN, FLAT, BARE, WINDOW = {}, {"FLAT": True}, {"HAS_BIAS": False, "RELU": False}, {"KERNEL": (1, 1, 1), "DIMS": 1}
DEEP = {"KERNEL": (3, 3, 3), "DIMS": 3}
STRIDED = {"layout": "strided"}
AUTOCAST = {"parameters": "*fp32"}
# The most demanding first.
VARIANTS = {
    "small": (DEEP, PLAIN, FLAT, BARE, WINDOW, AUTOCAST),
    "large": (DEEP, PLAIN, FLAT, BARE, WINDOW, AUTOCAST),
    "gathered": (DEEP | FLAT | STRIDED, PLAIN, FLAT, BARE, WINDOW, DEEP | STRIDED, FLAT | STRIDED | AUTOCAST),
    "wide": (DEEP | FLAT | STRIDED, PLAIN, DEEP | STRIDED, FLAT | STRIDED | AUTOCAST),
}


@dataclass
class ConvCase:
    """As triton_linear_cases.Case, for kernels that take tuples."""

    kernel: object
    dtype: str
    size: str
    blocks: tuple
    options: dict
    variants: tuple

    def source(self, variant):
        from triton.compiler import ASTSource

        names, variant = self.kernel.arg_names, dict(variant)
        layout, parameters = variant.pop("layout", "dense"), variant.pop("parameters", f"*{TYPES[self.dtype]}")
        constants = self.constants(variant)
        dims, last = constants["DIMS"], constants["UNIT"] > 1
        signature, fixed, aligned = {}, {}, {}
        for i, name in enumerate(names):
            if name in constants:
                signature[name], fixed[name] = "constexpr", constants[name]
            elif name in OF_X or name in PARAMETERS or name in SUMS:
                signature[name] = f"*{TYPES[self.dtype]}" if name in OF_X else "*fp32" if name in SUMS else parameters
                aligned[(i,)] = [["tt.divisibility", 16]]
            elif name in ("x_size", "out_size"):
                ones = range(3 - dims)
            elif name in STRIDES:
                inner = 1 if last else STRIDES[name] - 1
                ones = () if layout == "strided" else (inner,)
            else:
                signature[name] = "i32"
            if name in STRIDES or name in ("x_size", "out_size"):
                signature[name] = tuple("constexpr" if j in ones else "i32" for j in range(STRIDES.get(name, 3)))
                fixed |= {(i, j): 1 for j in ones}
        return ASTSource(self.kernel, signature, constexprs=fixed, attrs=aligned)

    def constants(self, variant):
        """Of a 3 x 3 window over images unless the variant says otherwise; a stride only where residues matter."""
        stride = (1, 2, 2) if "input" in self.kernel.__name__ else (1, 1, 1)
        unit = UNIT[self.dtype] if self.size in ("small", "large") else 1
        values = {"KERNEL": (1, 3, 3), "DIMS": 2, "STRIDE": stride, "PADDING": (0, 1, 1), "DILATION": (1, 1, 1)}
        values |= {"COMMON": (1, 1, 1), "INVERSE": (0, *(int(s > 1) for s in stride[1:]))}
        values |= {"HAS_BIAS": True, "RELU": True, "FLAT": False, "WIDE": self.size == "wide", "UNIT": unit}
        values["PRECISION"] = "tf32" if self.dtype == "tf32" else "ieee"
        return {**values, **{n: v for n, v in self.options.items() if "BLOCK" in n}, **variant}


def cases():
    from shrinknets_fast.triton_kernels import conv, conv_backward_input, conv_backward_weight, conv_blocks

    kernels = {
        "conv": conv.conv_kernel,
        "conv_backward_input": conv_backward_input.conv_backward_input_kernel,
        "conv_backward_weight": conv_backward_weight.conv_backward_weight_kernel,
    }
    for (name, products), choices in conv_blocks.BLOCKS.items():
        for dtype in (d for d, p in PRODUCTS.items() if p == products):
            for size, blocks in choices.items():
                yield ConvCase(kernels[name], dtype, size, blocks, launch_options(blocks), VARIANTS[size])
    finish = conv_blocks.FINISH
    for dtype in PRODUCTS:
        blocks = (finish["BLOCK_P"], 1, finish["BLOCK_K"], finish["num_warps"], 1)
        kernel = conv_backward_weight.conv_backward_finish_kernel
        yield ConvCase(kernel, dtype, "gathered", blocks, finish, (DEEP | STRIDED, PLAIN, BARE, AUTOCAST))
