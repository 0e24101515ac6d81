"""Axes that meet by broadcasting."""


def meet(op, sized):
    """The one axis of several (axis, size) that meet by broadcasting: those of full size are unified."""
    size = max((n for _, n in sized if n != 1), default=1)
    full = [axis for axis, n in sized if n == size]
    for axis, n in sized:
        if n != size:  # one feature that meets many
            op.pin(axis, f"is broadcast in {op.label}")
    known = [axis for axis in full if axis is not None]
    for axis in full:
        if known:
            op.unify(known[0], axis)
    return known[0] if known and len(known) == len(full) else None


def broadcast_axes(op, values, ndim):
    """The axes of the broadcast result; what meets at one of its positions is unified."""
    return [
        meet(op, [(op.axis(v, v.ndim - back), v.shape[v.ndim - back]) for v in values if v.ndim >= back])
        for back in range(ndim, 0, -1)
    ]
