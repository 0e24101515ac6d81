"""Filtered layers: forward, backward, both, and the bytes they keep for the backward.

Beside ours: the plain layer (the lower bound), the unfused composition in eager and under torch.compile, a matmul of as many
operations and a copy_ of as many bytes as the layer needs (the bounds), and each of our paths by name.
"""

from dataclasses import dataclass

import torch

import shrinknets_fast as sn

from .. import layer_work as work
from ..registry import Case, family

PARTS = ("forward", "backward", "both")
HALF = torch.bfloat16


@dataclass(frozen=True)
class Shape:
    """make(): the filtered layer. input: its shape, the batch first. compile: in a quick run too (it takes seconds)."""

    name: str
    make: object
    input: tuple
    dtype: torch.dtype = torch.float32
    compile: bool = False
    channels_last: bool = False
    tf32: bool = False
    autocast: bool = False  # to bfloat16


def linear(batch, inputs, outputs, **more):
    name = f"linear {batch}x{inputs}x{outputs}"
    return Shape(name, lambda: sn.FilteredLinear(inputs, outputs), (batch, inputs), **more)


def conv(batch, inputs, outputs, kernel, side, groups=1, note="", **more):
    name = f"conv2d {batch}x{inputs}x{side}x{side} to {outputs}, {kernel}x{kernel}{note}"
    options = {"padding": kernel // 2, "groups": groups, "bias": False}
    make = lambda: sn.FilteredConv2d(inputs, outputs, kernel, **options)  # noqa: E731
    return Shape(name, make, (batch, inputs, side, side), **more)


def norm(batch, channels, side, **more):
    name = f"batch norm {batch}x{channels}x{side}x{side}"
    return Shape(name, lambda: sn.FilteredBatchNorm2d(channels), (batch, channels, side, side), **more)


def layer_norm(rows, features, kind=sn.FilteredLayerNorm, **more):
    """Its plain layer counts the dead, so it does other work on them."""
    name = "RMS norm" if kind is sn.FilteredRMSNorm else "layer norm"
    return Shape(f"{name} {rows}x{features}", lambda: kind(features, eps=1e-5), (rows, features), **more)


def rms_norm(rows, features, **more):
    return layer_norm(rows, features, sn.FilteredRMSNorm, **more)


def filter(batch, channels, side, **more):
    name = f"Filter {batch}x{channels}x{side}x{side}"
    return Shape(name, lambda: sn.Filter(channels), (batch, channels, side, side), **more)


QUICK = [
    linear(1024, 1024, 1024, compile=True),
    linear(64, 784, 4000),
    linear(16, 64, 64),
    conv(16, 64, 64, 3, 28, compile=True),
    conv(8, 3, 64, 3, 64),
    conv(8, 96, 96, 3, 28, groups=96, note=", depthwise"),
    norm(16, 64, 28),
    layer_norm(512, 256),
    rms_norm(512, 256),
    filter(16, 64, 28),
]
CPU = [
    linear(4096, 1024, 1024),
    linear(256, 784, 10000),
    linear(32, 4096, 4096),
    linear(16, 64, 64),
    conv(32, 64, 64, 3, 56),
    conv(32, 64, 64, 3, 56, channels_last=True),
    conv(32, 256, 256, 3, 14),
    conv(32, 3, 64, 7, 112),
    conv(32, 144, 144, 3, 28, groups=144, note=", depthwise"),
    conv(8, 16, 16, 3, 8),
    norm(32, 128, 28),
    norm(16, 16, 4),
    *(make(*size) for make in (layer_norm, rms_norm) for size in ((4096, 1024), (512, 4096))),
    filter(32, 128, 28),
    filter(16, 16, 4),
]
CUDA = [
    *(linear(8192, 4096, 4096, **kind) for kind in ({}, {"tf32": True}, {"dtype": HALF}, {"autocast": True})),
    *(linear(256, 784, 10000, **kind) for kind in ({}, {"dtype": HALF})),
    *(linear(65536, 64, 64, **kind) for kind in ({}, {"dtype": HALF})),
    linear(64, 256, 256),
    *(conv(128, 64, 64, 3, 56, **kind) for kind in ({"tf32": True}, {"dtype": HALF, "channels_last": True})),
    conv(128, 256, 256, 3, 14, dtype=HALF, channels_last=True),
    conv(256, 3, 64, 7, 112, dtype=HALF, channels_last=True),
    conv(128, 144, 144, 3, 56, groups=144, note=", depthwise", dtype=HALF, channels_last=True),
    conv(16, 16, 16, 3, 8),
    *(norm(128, 256, 56, **kind) for kind in ({}, {"dtype": HALF, "channels_last": True})),
    norm(16, 16, 8),
    *(make(16384, 4096, **kind) for make in (layer_norm, rms_norm) for kind in ({}, {"dtype": HALF})),
    *(filter(128, 256, 56, **kind) for kind in ({}, {"dtype": HALF, "channels_last": True})),
    filter(16, 16, 8),
]


def full_name(shape):
    """The case's name, with what is not float32, contiguous and exact."""
    notes = ["" if shape.dtype == torch.float32 else kind_of(shape)]
    notes += [word for word in ("tf32", "autocast", "channels_last") if getattr(shape, word)]
    return ", ".join([shape.name, *(note for note in notes if note)]).replace("_", " ")


def kind_of(shape):
    return str(shape.dtype).removeprefix("torch.")


@family
def layers(options):
    cuda = options.device.type == "cuda"
    for shape in CUDA if cuda and not options.quick else QUICK if options.quick else CPU:
        group = work.Group(shape, options)  # its inputs and reference are made once, for all three parts
        for part in PARTS:
            fields = {"dtype": kind_of(shape), "part": part}
            yield Case(f"{full_name(shape)}: {part}", lambda g=group, p=part: g.case(p), fields=fields)
