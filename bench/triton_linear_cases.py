"""Every linear kernel, dtype, choice of blocks and way to read tensors, for bench.triton_resources."""

from dataclasses import dataclass

from shrinknets_fast.triton_kernels.blocks import launch_options

from .triton_types import PRODUCTS, TYPES, UNIT


@dataclass
class Case:
    """One kernel in one dtype with one choice of blocks, in every variant that a launch can ask for.

    types: Triton's type by argument, "i32" for what it does not name. options: num_warps and num_stages.
    variants: for each, {argument: its constant} and other ``types``, the most demanding first. Pointers are aligned; of integers
    nothing is known.
    """

    kernel: object
    dtype: str
    blocks: tuple
    types: dict
    options: dict
    variants: list

    def source(self, variant):
        from triton.compiler import ASTSource

        names = self.kernel.arg_names
        constants = {n: v for n, v in variant.items() if n in names}
        types = {**self.types, **variant.get("types", {})}
        signature = {n: "constexpr" if n in constants else types.get(n, "i32") for n in names}
        attributes = {(names.index(n),): [["tt.divisibility", 16]] for n, t in signature.items() if t.startswith("*")}
        return ASTSource(self.kernel, signature, constexprs=constants, attrs=attributes)


def cases():
    """Kernels are imported late: Triton settles at its first import whether they are interpreted."""
    from shrinknets_fast.triton_kernels import linear, linear_blocks

    for (name, products), choices in linear_blocks.BLOCKS.items():
        for dtype in (d for d, p in PRODUCTS.items() if p == products):
            for size, blocks in choices.items():
                options = launch_options(blocks)
                yield linear_case(getattr(linear, f"{name}_kernel"), dtype, blocks, options, size != "unaligned")


def linear_case(kernel, dtype, blocks, options, aligned):
    """With and without bias and relu; with float32 parameters, as under autocast; where rows are not aligned, contiguous,
    strided, and strided with huge steps."""
    types = dict.fromkeys(("x", "grad", "out", "dx", "weight", "bias", "dweight", "dbias"), f"*{TYPES[dtype]}")
    fixed = {"WIDE": False, "UNIT": UNIT[dtype] if aligned else 1, "PRECISION": "tf32" if dtype == "tf32" else "ieee"}
    fixed |= {n: v for n, v in options.items() if "BLOCK" in n}
    dense = {"x_k": 1, "weight_k": 1, "grad_n": 1}
    flags = [{"HAS_BIAS": bias, "RELU": relu} for bias in (True, False) for relu in (True, False)]
    variants = [{**fixed, **dense, **f} for f in flags]
    parameters = dict.fromkeys(("weight", "bias", "dweight", "dbias"), "*fp32")
    if types["x"] != "*fp32":
        variants.append({**variants[0], "types": parameters})
    if not aligned:
        variants += [{**fixed, **flags[0]}, {**fixed, **flags[0], "WIDE": True}]
    launch = {n: v for n, v in options.items() if "num_" in n}
    return Case(kernel, dtype, blocks, {**types, "theta": "*fp32", "dtheta": "*fp32"}, launch, variants)
