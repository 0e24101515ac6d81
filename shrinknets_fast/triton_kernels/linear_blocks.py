"""Block sizes of the linear kernels: a small table instead of tuning at run time. docs/triton.md shows what each costs."""

from .blocks import tiles

# (kernel, how products are formed): sizes, each (BLOCK_M, BLOCK_N, BLOCK_K, warps, stages). "unaligned" is for rows that cannot
# be read 16 bytes at a time: every element then takes a register of its own on its way, so larger tiles spill.
# 64 along the product's first dimension is the least that wgmma takes. Chosen by registers and shared memory, not measured.
BLOCKS = {
    ("linear", "half"): {
        "small": (64, 32, 64, 4, 4),
        "large": (128, 128, 64, 8, 3),
        "unaligned": (64, 32, 32, 4, 3),
    },
    ("linear", "tf32"): {
        "small": (64, 32, 32, 4, 4),
        "large": (128, 64, 32, 4, 3),
        "unaligned": (64, 32, 32, 4, 3),
    },
    ("linear", "ieee"): {
        "small": (32, 32, 32, 4, 2),
        "large": (64, 64, 16, 4, 2),
        "unaligned": (32, 32, 32, 4, 2),
    },
    ("linear_backward_input", "half"): {
        "small": (64, 64, 32, 4, 3),
        "large": (128, 64, 128, 8, 3),
        "unaligned": (64, 32, 32, 4, 3),
    },
    ("linear_backward_input", "tf32"): {
        "small": (64, 32, 32, 4, 3),
        "large": (64, 32, 64, 4, 3),
        "unaligned": (64, 32, 32, 8, 3),
    },
    ("linear_backward_input", "ieee"): {
        "small": (32, 32, 32, 4, 2),
        "large": (64, 16, 64, 8, 2),
        "unaligned": (32, 32, 32, 4, 2),
    },
    ("linear_backward_weight", "half"): {
        "small": (64, 64, 32, 4, 3),
        "large": (64, 128, 64, 8, 3),
        "unaligned": (32, 64, 32, 4, 3),
    },
    ("linear_backward_weight", "tf32"): {
        "small": (32, 64, 32, 4, 3),
        "large": (32, 128, 64, 8, 3),
        "unaligned": (32, 64, 32, 8, 3),
    },
    ("linear_backward_weight", "ieee"): {
        "small": (32, 32, 32, 4, 2),
        "large": (16, 64, 64, 4, 2),
        "unaligned": (32, 32, 32, 4, 2),
    },
}
# The two of a kernel's block sizes that tile its output.
TILED = {"linear": (0, 1), "linear_backward_input": (0, 2), "linear_backward_weight": (1, 2)}
ENOUGH_TILES = 100  # about one per multiprocessor (A100: 108, H100: 132): fewer large tiles would leave some idle


def tiles_of(kernel, blocks, sizes):
    """How many programs cover an output of this kernel; ``sizes`` is (M, N, K)."""
    a, b = TILED[kernel]
    last = tiles(sizes[b], blocks[b])
    if kernel == "linear_backward_weight":
        last = max(last, 1)  # dbias is wanted even where there are no columns
    return tiles(sizes[a], blocks[a]) * last


def blocks_for(kernel, products, sizes, aligned):
    """The table's entry for ``sizes`` (M, N, K)."""
    choices = BLOCKS[kernel, products]
    if not aligned:
        return choices["unaligned"]
    return choices["large" if tiles_of(kernel, choices["large"], sizes) >= ENOUGH_TILES else "small"]
