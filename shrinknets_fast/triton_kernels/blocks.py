"""Arithmetic of blocks, whatever the kernel."""


def tiles(count, block):
    """How many blocks cover ``count``."""
    return -(-count // block)


def launch_options(blocks):
    """The entry of a table as keyword arguments of a launch."""
    m, n, k, warps, stages = blocks
    return {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "num_warps": warps, "num_stages": stages}
