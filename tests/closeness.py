"""One table of tolerances for all ops: relative L2 error of the whole tensor against float64."""

import itertools

import torch

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
TOLERANCE = {torch.float64: 1e-14, torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def assert_close(got, expected, dtype=None):
    """``got`` is near ``expected`` (computed in float64) for its dtype, and not finite at the same places."""
    assert got.shape == expected.shape
    tolerance = TOLERANCE[dtype or got.dtype]
    got, expected = got.double(), expected.double()
    finite = expected.isfinite()
    assert torch.equal(got.isfinite(), finite)
    error = (got[finite] - expected[finite]).norm()
    assert float(error) <= tolerance * float(expected[finite].norm()), float(error / expected[finite].norm())


def assert_no_worse(got, unfused, exact):
    """The errors of ``got`` are at most 1.5 times those of ``unfused``: lists of tensors, pooled so that luck evens out.

    Where the unfused composition is luckier than rounding the exact result would be, that rounding is what counts.
    """
    rounded = [e.to(g.dtype) for g, e in zip(got, exact, strict=True)]
    ours, theirs, least = (
        sum(float((t.double() - e).square().sum()) for t, e in zip(tensors, exact, strict=True)) ** 0.5
        for tensors in (got, unfused, rounded)
    )
    assert ours <= 1.5 * max(theirs, least), (ours, theirs, least)


def wide(*tensors):
    return [t.double() if isinstance(t, torch.Tensor) else t for t in tensors]


def slid_views(shape, dtype, device="cpu"):
    """Views of one shape at growing offsets in a buffer of sentinels; yields (view, check): check() looks around the view."""
    count = torch.Size(shape).numel()
    for offset in (0, 1, 2, 3, 5, 8, 13):
        buffer = torch.full((count + 32,), 77.0, dtype=dtype, device=device)
        view = buffer[offset : offset + count].view(shape)
        view.normal_()

        def check(buffer=buffer, offset=offset):
            assert (buffer[:offset] == 77).all() and (buffer[offset + count :] == 77).all()

        yield view, check


def mixed_dtypes():
    """Pairs of dtypes, the same and different."""
    return list(itertools.product(DTYPES, repeat=2))
