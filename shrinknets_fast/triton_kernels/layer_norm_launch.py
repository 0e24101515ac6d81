"""From tensors to launches of the norm's kernels: which blocks, how many programs."""

import math

import torch

from . import layer_norm as kernels
from .blocks import tiles
from .launch import check_device, dense, on

# (features of a block, warps, stages): a row is read in blocks, the smallest that holds it or the largest. Chosen by registers,
# not measured.
ROW_BLOCKS = ((128, 1, 2), (1024, 4, 2), (4096, 8, 2))
WEIGHT_BLOCK = (16, 64, 4, 2)  # rows, features, warps, stages
PART_ROWS, PARTS = 64, 64  # rows of a part at least, and parts at most: each takes two rows of float32


def row_block(features):
    return next((block for block in ROW_BLOCKS if features <= block[0]), ROW_BLOCKS[-1])


def options(block):
    return {"BLOCK": block[0], "num_warps": block[1], "num_stages": block[2]}


def given(vector, other):
    """A kernel gets some pointer where there is no vector."""
    return other if vector is None else dense(vector)


def layer_norm(x, weight, bias, theta, eps, rms, y, mean, rstd):
    """Fills y, mean and rstd; the formulas are in ops/layer_norm.py."""
    check_device("layer_norm", x)
    rows, features = math.prod(x.shape[:-1]), x.shape[-1]
    if not rows or not features:
        return
    theta = dense(theta)
    flags = {"RMS": rms, "HAS_WEIGHT": weight is not None, "HAS_BIAS": bias is not None}
    vectors = (given(weight, theta), given(bias, theta), theta)
    with on(x.device):
        kernels.layer_norm_kernel[(rows,)](
            x.contiguous(),
            *vectors,
            y,
            rstd if rms else mean,
            rstd,
            features,
            eps,
            **flags,
            **options(row_block(features)),
        )


def layer_norm_backward_input(grad, x, mean, rstd, weight, theta, rms, dx):
    """Fills dx."""
    check_device("layer_norm_backward", x)
    rows, features = math.prod(x.shape[:-1]), x.shape[-1]
    if not rows or not features:
        return
    theta = dense(theta)
    flags = {"RMS": rms, "HAS_WEIGHT": weight is not None}
    tensors = (
        grad.contiguous(),
        x.contiguous(),
        dense(rstd if rms else mean),
        dense(rstd),
        given(weight, theta),
        theta,
        dx,
    )
    with on(x.device):
        kernels.layer_norm_backward_input_kernel[(rows,)](*tensors, features, **flags, **options(row_block(features)))


def layer_norm_sums(grad, x, mean, rstd, theta, rms):
    """(2, C): the sums of grad xhat and of grad over rows, 0 where theta is dead."""
    check_device("layer_norm_backward", x)
    rows, features = math.prod(x.shape[:-1]), x.shape[-1]
    if not rows or not features:
        return torch.zeros(2, features, dtype=torch.float32, device=x.device)
    part_rows = max(PART_ROWS, tiles(rows, PARTS))
    parts = tiles(rows, part_rows)
    sums = torch.empty(parts, 2, features, dtype=torch.float32, device=x.device)
    height, width, warps, stages = WEIGHT_BLOCK
    tensors = (grad.contiguous(), x.contiguous(), dense(rstd if rms else mean), dense(rstd), dense(theta), sums)
    with on(x.device):
        kernels.layer_norm_backward_weight_kernel[(tiles(features, width), parts)](
            *tensors,
            rows,
            features,
            part_rows,
            RMS=rms,
            BLOCK_M=height,
            BLOCK_N=width,
            num_warps=warps,
            num_stages=stages,
        )
    return sums.sum(0)
