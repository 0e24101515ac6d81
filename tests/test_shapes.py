"""Quick results on meta tensors are torch's own: same shape, strides and dtype, and the same refusals."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from shrinknets_fast.graph.shapes import IN_PLACE, LIKE, RULES, Shapes, quick

aten = torch.ops.aten
FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def meta(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


def described(result):
    return [
        (type(t), t.shape, t.stride(), t.dtype, t.device) for t in (result if isinstance(result, tuple) else (result,))
    ]


CASES = {
    aten.addmm.default: [(meta(5), meta(3, 4), meta(4, 5)), (meta(5), meta(0, 4), meta(5, 4).t())],
    aten.native_batch_norm.default: [
        (meta(4, 3, 5, 5), meta(3), meta(3), meta(3), meta(3), True, 0.1, 1e-5),
        (meta(4, 3), None, None, None, None, True, 0.1, 1e-5),
    ],
    aten.native_layer_norm.default: [
        (meta(2, 7, 6), [6], meta(6), meta(6), 1e-5),
        (meta(2, 7, 6), [7, 6], None, None, 1e-5),
        (meta(6), [6], meta(6), None, 1e-5),
    ],
}
CASES |= {op: [(meta(2, 3, 4),), (meta(0, 5),), (meta(),)] for op in LIKE | IN_PLACE}


def with_dtype(args, dtype):
    return tuple(torch.empty_like(a, dtype=dtype) if isinstance(a, torch.Tensor) else a for a in args)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("op", sorted([*RULES, *LIKE, *IN_PLACE], key=str), ids=str)
def test_quick_is_what_torch_says(op, dtype):
    for args in CASES[op]:
        args = with_dtype(args, dtype)
        found, expected = quick(op, args), op(*args)
        if op in IN_PLACE:
            assert found is args[0]
        # a norm returns more, for its backward: a forward does not see that
        assert described(found)[0] == described(expected)[0]


def test_the_rest_is_torchs():
    wide = meta(2, 6, dtype=torch.float64)
    images = meta(2, 3, 4, 4)
    for op, *args in (
        (aten.relu.default, meta(2, 3).t()),
        (aten.relu.default, meta(2, 3, dtype=torch.int64)),
        (aten.relu.default, torch.ones(2)),
        (aten.relu_.default, torch.ones(2)),
        (aten.addmm.default, meta(2, 5), meta(2, 4), meta(4, 5)),
        (aten.addmm.default, meta(5), meta(2, 4), meta(4, 5, dtype=torch.float64)),
        (aten.native_layer_norm.default, wide, [6], meta(6), None, 1e-5),
        (aten.native_batch_norm.default, images.half(), meta(3), meta(3), meta(3), meta(3), True, 0.1, 1e-5),
        (aten.mul.Tensor, meta(2), meta(2)),
    ):
        assert quick(op, args) is None


@pytest.mark.parametrize(
    "call",
    [
        lambda: F.linear(meta(2, 4), meta(5, 3), meta(5)),
        lambda: F.linear(meta(2, 4), meta(5, 4), meta(3)),
        lambda: F.batch_norm(meta(2, 4, 3, 3), meta(5), meta(5)),
        lambda: F.batch_norm(meta(2, 4, 3, 3), None, None, meta(3), meta(4), training=True),
        lambda: F.layer_norm(meta(2, 4), (5,)),
        lambda: F.layer_norm(meta(2, 4), (4,), meta(5)),
        lambda: F.layer_norm(meta(4), (2, 4)),
    ],
)
def test_sizes_that_do_not_fit_are_refused(call):
    with Shapes(), pytest.raises(RuntimeError):
        call()


def test_a_whole_network():
    with torch.device("meta"):
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3),
            nn.BatchNorm2d(8),
            nn.Hardtanh(),
            nn.Flatten(),
            nn.Linear(8 * 36, 10),
            nn.LayerNorm(10),
            nn.GELU(),
        )
    for mode in (True, False):
        model.train(mode)
        with Shapes():
            found = model(meta(2, 3, 8, 8))
        assert described(found) == described(model(meta(2, 3, 8, 8)))
