"""Block sizes of the convolution kernels, and how their work is divided: tables instead of tuning at run time."""

from .blocks import tiles

# (kernel, how products are formed): sizes, each (BLOCK_M, BLOCK_N, BLOCK_K, warps, stages). "gathered" is for tensors that cannot
# be read 16 bytes at a time: every element then takes a register of its own on its way, so larger tiles spill; "wide" is for
# offsets of 64 bits, which take two. 64 along the product's first dimension is the least that wgmma takes. Chosen by
# registers and shared memory, not measured.
BLOCKS = {
    ("conv", "half"): {
        "small": (64, 32, 32, 4, 3),
        "large": (128, 128, 64, 8, 3),
        "gathered": (64, 32, 32, 4, 3),
        "wide": (64, 32, 16, 4, 2),
    },
    ("conv", "tf32"): {
        "small": (64, 32, 32, 4, 3),
        "large": (128, 64, 32, 8, 3),
        "gathered": (64, 32, 32, 4, 3),
        "wide": (32, 32, 32, 4, 2),
    },
    ("conv", "ieee"): {
        "small": (32, 32, 16, 4, 2),
        "large": (64, 64, 16, 4, 2),
        "gathered": (32, 32, 32, 4, 2),
        "wide": (32, 32, 16, 4, 2),
    },
    ("conv_backward_input", "half"): {
        "small": (64, 64, 32, 4, 3),
        "large": (128, 64, 128, 8, 3),
        "gathered": (64, 32, 32, 4, 3),
        "wide": (64, 16, 32, 4, 2),
    },
    ("conv_backward_input", "tf32"): {
        "small": (64, 16, 32, 4, 3),
        "large": (64, 32, 64, 4, 3),
        "gathered": (32, 32, 32, 4, 2),
        "wide": (32, 16, 32, 4, 2),
    },
    ("conv_backward_input", "ieee"): {
        "small": (32, 16, 32, 4, 2),
        "large": (64, 16, 64, 8, 2),
        "gathered": (32, 32, 32, 4, 2),
        "wide": (32, 16, 32, 4, 2),
    },
    ("conv_backward_weight", "half"): {
        "small": (32, 64, 64, 4, 3),
        "large": (32, 128, 128, 8, 3),
        "gathered": (16, 64, 32, 4, 3),
        "wide": (16, 64, 32, 4, 2),
    },
    ("conv_backward_weight", "tf32"): {
        "small": (32, 64, 32, 4, 2),
        "large": (32, 128, 64, 8, 3),
        "gathered": (32, 64, 32, 4, 2),
        "wide": (32, 32, 32, 4, 2),
    },
    ("conv_backward_weight", "ieee"): {
        "small": (16, 32, 32, 4, 2),
        "large": (16, 64, 64, 4, 2),
        "gathered": (16, 32, 16, 4, 2),
        "wide": (16, 32, 32, 4, 2),
    },
}
FINISH = {"BLOCK_P": 8, "BLOCK_K": 512, "num_warps": 4}  # 32 elements of the partial sums for each thread
PROGRAMS = 264  # two for each multiprocessor of an H100
LEAST_STEPS = 8  # of a part's loop: shorter ones cost more to add up than they save


def flat(channels, taps, block):
    """Whether a step of a sum over (tap, channel) spans taps: where a third or more of its products would be with nothing."""
    return taps > 1 and 3 * channels < 2 * tiles(channels, block) * block


def blocks_for(kernel, products, unit, wide, programs):
    """The table's entry; ``programs`` counts those that a choice of (BLOCK_M, BLOCK_N, BLOCK_K) asks for."""
    choices = BLOCKS[kernel, products]
    if unit == 1:
        return choices["wide" if wide else "gathered"]
    return choices["large" if programs(*choices["large"][:3]) >= PROGRAMS // 2 else "small"]


def rows_of_a_part(rows, programs, block):
    """How many rows each part of a sum over ``rows`` takes, where one part is ``programs`` programs; a multiple of ``block``."""
    parts = max(1, min(PROGRAMS // programs, rows // (LEAST_STEPS * block)))
    return tiles(min(tiles(rows, parts), 1 << 30), block) * block
