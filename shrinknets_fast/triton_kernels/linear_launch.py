"""From tensors to launches of the linear kernels: which blocks, how rows are read, how many programs."""

import math

import torch

from . import linear as kernels
from .blocks import launch_options, tiles
from .launch import check_device, dense, on, precision_of, products_of
from .linear_blocks import blocks_for, tiles_of


def linear(x, weight, bias, theta, out, relu):
    """Fills ``out``; the formulas are in ops/linear.py."""
    launch = Launch(x, weight, out=out)
    bias, theta = dense(bias), theta.contiguous()
    launch(
        "linear", (launch.x, weight, theta if bias is None else bias, theta, out), HAS_BIAS=bias is not None, RELU=relu
    )


def linear_backward(grad, x, weight, bias, theta, out, gradients, wants_input, wants_parameters):
    """Fills and returns ``gradients``."""
    dx, dweight, dbias, dtheta = gradients
    launch = Launch(x, weight, grad=grad, out=out)
    theta, grad, saved = theta.contiguous(), launch.grad, launch.grad if out is None else launch.out
    if wants_input:
        launch("linear_backward_input", (grad, saved, weight, theta, dx), RELU=out is not None)
    if not wants_parameters:
        return gradients
    blocks = launch.blocks("linear_backward_weight")
    parts = max(tiles(launch.sizes[2], blocks[2]), 1)  # as many rows of dtheta as there are blocks of columns
    partial = dtheta if parts == 1 else theta.new_empty(parts, len(theta), dtype=torch.float32)
    bias = dense(bias)
    vectors = (theta if bias is None else bias, theta, dweight, dbias, partial)
    launch(
        "linear_backward_weight",
        (grad, saved, launch.x, weight, *vectors),
        HAS_BIAS=bias is not None,
        RELU=out is not None,
    )
    return (dx, dweight, dbias, dtheta if parts == 1 else partial.sum(0).to(dtheta.dtype))


class Launch:
    """What the kernels of one call share: the tensors as matrices, their sizes and strides, and how rows are read."""

    def __init__(self, x, weight, grad=None, out=None):
        check_device("linear", x)
        features, columns = weight.shape
        rows = math.prod(x.shape[:-1])
        self.device = x.device
        self.x = x.reshape(rows, columns)
        self.grad, self.out = (None if t is None else t.reshape(rows, features) for t in (grad, out))
        self.out = dense(self.out)
        self.sizes = (rows, features, columns)
        self.set_unit([m for m in (self.x, weight, self.grad) if m is not None], 16 // x.element_size())
        self.scalars = {"M": rows, "N": features // self.unit, "K": columns // self.unit}
        for name, matrix, inner in (("x", self.x, "k"), ("weight", weight, "k"), ("grad", self.grad, "n")):
            if matrix is not None:
                outer = "n" if name == "weight" else "m"
                self.scalars[f"{name}_{outer}"] = matrix.stride(0) // self.unit
                self.scalars[f"{name}_{inner}"] = matrix.stride(1)
        self.products = products_of(x, torch.backends.cuda.matmul)

    def set_unit(self, matrices, unit):
        """How many elements are 16 bytes of x, if every row starts at a multiple of that many and is dense; else 1."""
        steps = [*self.sizes[1:], *(m.stride(0) for m in matrices)]
        # from the corner of a tile to its end: 128 is the longest side of a block
        self.wide = 128 * (max(steps) + max(m.stride(1) for m in matrices)) >= 2**31
        dense_rows = all(m.stride(1) == 1 and not m.data_ptr() % 16 for m in matrices)
        self.unit = unit if dense_rows and not self.wide and not any(s % unit for s in steps) else 1

    def blocks(self, kernel):
        return blocks_for(kernel, self.products, self.sizes, self.unit > 1)

    def __call__(self, name, tensors, **flags):
        kernel = getattr(kernels, f"{name}_kernel")
        blocks = self.blocks(name)
        programs = tiles_of(name, blocks, self.sizes)
        if not programs:
            return
        scalars = [self.scalars[n] for n in kernel.arg_names if n in self.scalars]
        options = {
            "PRECISION": precision_of(self.products),
            "UNIT": self.unit,
            "WIDE": self.wide,
            **launch_options(blocks),
        }
        with on(self.device):
            kernel[(programs,)](*tensors, *scalars, **flags, **options)
