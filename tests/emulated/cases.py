"""One random call of each op: the emulated kernels against the CPU's, bit for bit where both must agree, and the reference."""

import torch
from closeness import TOLERANCE, wide

from shrinknets_fast import reference
from shrinknets_fast.ops.compact import dense_strides, fill

from .tensors import FLOATS

ANY = (torch.uint8, torch.float16, torch.float32, torch.float64, torch.complex128, torch.bool)
cpu = torch.ops.shrinknets_fast


def close(got, expected):
    """As closeness.assert_close, for values at the edge of the dtype too."""
    assert got.shape == expected.shape, (got.shape, expected.shape)
    tolerance, limits = TOLERANCE[got.dtype], torch.finfo(got.dtype)
    got, expected = got.double(), expected.double()
    fits = expected.isfinite() & (expected.abs() < limits.max / 4)
    assert torch.equal(got.isnan(), expected.isnan()), "NaN at other places"
    error, norm = (got[fits] - expected[fits]).norm(), expected[fits].norm()
    assert float(error) <= float(tolerance * norm + limits.tiny * 4 * fits.sum()), (float(error), float(norm))


def same(got, expected):
    """Bit for bit, any NaN like any other."""
    ours, theirs = ((t.dtype, t.shape) for t in (got, expected))
    assert ours == theirs, f"{ours}, expected {theirs}"
    assert torch.equal(got.isnan(), expected.isnan()), "NaN at other places"
    assert torch.equal(got.nan_to_num(nan=7.0), expected.nan_to_num(nan=7.0)), "differs from the CPU's"


def sum_is_close(got, expected, absolute, *dtypes):
    """A sum in any order, against the sum of absolute values; dtypes: of the summands, and last the result's."""
    got = got.double()
    limits = torch.finfo(dtypes[-1])
    finite = expected.isfinite() & absolute.isfinite() & (expected.abs() < limits.max / 4)
    eps = max(limits.eps, 1e-6 if torch.float64 not in dtypes else 1e-14)
    assert torch.equal(got[finite].isfinite(), expected[finite].isfinite())
    error = (got - expected)[finite].abs()
    assert (error <= eps * (absolute + expected.abs())[finite] + limits.tiny).all(), (
        float(error.max()),
        error.argmax(),
    )


def per_feature(product, dim):
    return product.transpose(0, dim).unsqueeze(-1).flatten(1).sum(1)


def fold(case):
    draw, call = case.draw, case.library.call
    shape = case.shape(draw.choice([1, 2, 2, 2, 3, 4, 5, 8]), 4_000 if case.small else 12_000)
    dtype, kind = draw.choice(FLOATS), None
    if draw.random() < 0.15:  # rows that are packs, but not from where each begins
        shape, kind = [draw.randint(2, 9), 4 * draw.randint(1, 40)], "padded"
    weight, grad = case.filled(case.strided(shape, dtype, kind)), case.filled(case.strided(shape, case.dtype(dtype)))
    theta = case.theta(shape[0], case.dtype(dtype))
    bias = case.vector(shape[0], case.dtype(dtype)) if draw.random() < 0.6 else None
    grad_bias = case.vector(shape[0], case.dtype(dtype)) if bias is not None and draw.random() < 0.7 else None
    case.poison_dead(theta, 0, weight, grad)
    cast = draw.choice([None, None, *FLOATS])
    exact = reference.fold(*wide(weight, bias, theta))
    for got, cpus, e in zip(
        call("fold", weight, bias, theta, cast), cpu.fold(weight, bias, theta, cast), exact, strict=True
    ):
        same(got, cpus)
        assert got.stride() == cpus.stride()
        close(got, e)
    args = (grad, grad_bias, weight, bias, theta)
    grads, cpus, exact = call("fold_backward", *args), cpu.fold_backward(*args), reference.fold_backward(*wide(*args))
    same(grads[0], cpus[0])
    same(grads[1], cpus[1])
    absolute = per_feature((grad.double() * weight.double()).abs(), 0)
    if grad_bias is not None:
        absolute += (grad_bias.double() * bias.double()).abs()
    assert grads[2].dtype == theta.dtype and (grads[2][theta <= 0] == 0).all()
    sum_is_close(grads[2], exact[2], absolute, grad.dtype, weight.dtype, theta.dtype)


def filter(case):
    draw, call = case.draw, case.library.call
    shape = case.shape(draw.choice([1, 2, 2, 3, 3, 4, 5, 7]), 4_000 if case.small else 12_000)
    if draw.random() < 0.06 and not case.small:  # more elements of a feature than one block takes
        shape = draw.choice([[40_000], [3, 2, 100, 70], [900, 3], [17_000, 2], [2, 3, 9001], [600, 5, 4]])
    dim = draw.randrange(-len(shape), len(shape))
    dtype, relu = draw.choice(FLOATS), draw.random() < 0.5
    x, grad = case.filled(case.strided(shape, dtype)), case.filled(case.strided(shape, case.dtype(dtype)))
    theta = case.theta(1 if draw.random() < 0.1 else shape[dim], case.dtype(dtype))
    case.poison_dead(theta, dim, x, grad)
    y = call("filter", x, theta, dim, relu)
    expected = cpu.filter(x, theta, dim, relu)
    same(y, expected)
    assert y.stride() == expected.stride()
    close(y, reference.filter(*wide(x, theta), dim, relu))
    saved = y if relu else x
    dx, dtheta = call("filter_backward", grad, saved, theta, dim, relu)
    same(dx, cpu.filter_backward(grad, saved, theta, dim, relu)[0])
    exact = reference.filter_backward(*wide(grad, saved, theta), dim, relu)[1]
    assert dtheta.dtype == theta.dtype and (dtheta[theta <= 0] == 0).all()
    product = (grad.double() * saved.double()).abs()
    absolute = product.sum().reshape(1) if len(theta) == 1 else per_feature(product, dim)
    if relu:
        absolute = absolute / theta.double().abs().clamp(min=1e-300)
    alive = theta > (
        1e-30 if relu else 0
    )  # with relu a sum of y's is divided by theta: subnormal, nothing is left of y
    sum_is_close(dtheta[alive], exact[alive], absolute[alive], grad.dtype, x.dtype, theta.dtype)


def aliveness(case):
    draw = case.draw
    thetas, group = [], []
    counts = [1, 2, 3, 7, 12] if case.small else [1, 2, 3, 7, 40] * 4 + [99, 101, 500, 900]
    for number in range(draw.choice(counts)):
        n = draw.choice([0, 1, 2, 7, 31, 32, 33, 63, 65, 255, 256, 257, 700]) if draw.random() < 0.5 else 3
        for _ in range(draw.choice([1, 1, 2, 3])):
            thetas.append(case.theta(n, draw.choice(FLOATS)).contiguous())
            group.append(number)
    found = case.library.call("aliveness", thetas, group)
    assert torch.equal(found, cpu.aliveness(thetas, group)) and torch.equal(found, reference.aliveness(thetas, group))


def bury(case):
    draw = case.draw
    thetas, state, owner, twins = [], [], [], []
    counts = [1, 2, 3, 9, 14] if case.small else [1, 2, 3, 9, 33] * 5 + [101, 450]
    for number in range(draw.choice(counts)):
        n = draw.choice([0, 1, 2, 7, 256, 257, 700, 1025, 3000]) if draw.random() < 0.4 else 3
        theta = case.theta(n, draw.choice(FLOATS)).contiguous()
        values = [case.filled(case.flat(n, draw.choice(FLOATS))) for _ in range(draw.choice([0, 1, 2, 3]))]
        thetas.append(theta)
        state += values
        owner += [number] * len(values)
        twins.append(([theta, *values], reference.bury(theta, values)))
    if draw.random() < 0.3:  # any order of the state is the same call
        order = draw.sample(range(len(state)), len(state))
        state, owner = [state[i] for i in order], [owner[i] for i in order]
    case.library.call("bury_", thetas, state, owner)
    for found, expected in twins:
        for a, b in zip(found, expected, strict=True):
            same(a, b)


def deaths(draw, size):
    """The positions that stay."""
    kind = draw.choice(["none", "all", "all but one", "random", "random", "alternating", "block", "ends", "first"])
    alive = torch.full((size,), kind not in ("all", "all but one"))
    if kind == "random":
        share = draw.choice([0.01, 0.1, 0.5, 0.9])
        alive = torch.tensor([draw.random() > share for _ in range(size)], dtype=torch.bool)
    elif kind == "alternating":
        alive[draw.randrange(2) :: 2] = False
    elif size and kind == "all but one":
        alive[draw.randrange(size)] = True
    elif size and kind == "block":
        start = draw.randrange(size)
        alive[start : draw.randrange(start, size + 1)] = False
    elif size and kind in ("ends", "first"):
        alive[0] = alive[-1] = False
        alive[-1] |= kind == "first" and size > 1
    return alive.nonzero().flatten()


def big_shape(draw):
    """Several tiles of 32 KB."""
    return draw.choice(
        [
            [draw.randint(100, 400), draw.randint(100, 400)],
            [draw.randint(20_000, 120_000)],
            [draw.randint(20, 60), draw.randint(20, 60), draw.randint(10, 40)],
            [draw.randint(3, 8), draw.randint(40, 80), draw.randint(60, 120)],
            [2, draw.randint(100, 200), draw.randint(100, 300)],
        ]
    )


def compact(case):
    draw = case.draw
    kind = draw.choice(["few", "few", "deep", "deep", "many"])
    number = {"few": draw.randint(1, 4), "deep": draw.randint(1, 3), "many": draw.choice([31, 33, 40, 65, 120])}[kind]
    tensors, keeps, lists, known = [], [], [], {}
    for _ in range(number):
        shape = case.shape(draw.randint(1, 4), 6_000 if case.small else 20_000)
        if kind == "deep":  # rows with more around them than columns
            shape = [draw.randint(2, 14) for _ in range(draw.choice([3, 3, 4]))]
        elif kind == "many":  # more tensors than a warp has lanes
            shape = [draw.randint(2, 7) for _ in range(draw.randint(1, 3))]
        elif draw.random() < 0.1 and not case.small:
            shape = big_shape(draw)
        t = case.strided(shape, draw.choice(ANY), "dense")
        t.copy_(torch.randint(0, 2 if t.dtype == torch.bool else 250, shape).to(t.dtype))
        keep, least = {}, {"few": 0, "deep": 2, "many": 1}[kind]
        for d in draw.sample(range(len(shape)), min(draw.randint(least, 2), len(shape))):
            if shape[d] not in known or draw.random() < 0.6:
                kept = deaths(draw, shape[d])
                known[shape[d]] = len(lists)
                lists.append(fill(kept, shape[d]) if draw.random() < 0.5 else kept)
            keep[d] = known[shape[d]]
        tensors.append(t)
        keeps.append(keep)
    if case.library.watched:
        case.library.forbid(*lists)  # they are the host's
    expected = [
        reference.compact(t, {d: lists[i] for d, i in keep.items()}) for t, keep in zip(tensors, keeps, strict=True)
    ]
    edits = [(number, d, i) for number, keep in enumerate(keeps) for d, i in keep.items()]
    draw.shuffle(edits)
    case.library.call("compact_", tensors, lists, *([e[place] for e in edits] for place in range(3)))
    for t, keep, e in zip(tensors, keeps, expected, strict=True):
        found = t.as_strided(e.shape, dense_strides(t, e.shape), t.storage_offset()) if e.numel() else e
        assert torch.equal(found, e), (tuple(t.shape), t.stride(), t.dtype, {d: len(lists[i]) for d, i in keep.items()})


OPS = {"fold": fold, "filter": filter, "aliveness": aliveness, "bury": bury, "compact": compact}
