"""A pure-torch twin of every op: the oracle of the tests and a rival in the benchmarks. Written to be read, not to be fast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch


def scale(theta: torch.Tensor) -> torch.Tensor:
    """``max(0, theta)``, where a NaN stays a NaN."""
    return torch.where(theta <= 0, torch.zeros_like(theta), theta)


def along(vector: torch.Tensor, ndim: int, dim: int) -> torch.Tensor:
    """``vector`` shaped to broadcast along dimension ``dim`` of a tensor with ``ndim`` dimensions; one entry fits anywhere."""
    if vector.numel() == 1:
        return vector.reshape([1] * ndim)
    shape = [1] * ndim
    shape[dim] = -1
    return vector.reshape(shape)


def widest(*tensors: torch.Tensor | None) -> torch.dtype:
    """The dtype to compute in: float64 if any has it, else float32."""
    return torch.float64 if any(t is not None and t.dtype == torch.float64 for t in tensors) else torch.float32


def scaled(x: torch.Tensor, theta: torch.Tensor, dim: int, wide: torch.dtype) -> torch.Tensor:
    """``x * max(0, theta)`` by selection: exact zeros where theta is dead, whatever x holds."""
    theta = along(theta.to(wide), x.dim(), dim)
    return torch.where(theta <= 0, 0.0, x.to(wide)) * scale(theta)  # before the product, for autograd: 0 * NaN is NaN


def fold(
    weight: torch.Tensor, bias: torch.Tensor | None, theta: torch.Tensor, dtype: torch.dtype | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    dtype = dtype or weight.dtype
    wide = torch.promote_types(widest(weight, bias, theta), torch.float32 if dtype.itemsize < 8 else dtype)
    out = torch.empty_like(weight, dtype=dtype).copy_(scaled(weight, theta, 0, wide))
    out_bias = weight.new_empty(0, dtype=dtype) if bias is None else scaled(bias, theta, 0, wide).to(dtype)
    return out, out_bias


def fold_backward(
    grad_weight: torch.Tensor,
    grad_bias: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    theta: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    wide = widest(grad_weight, grad_bias, weight, bias, theta)
    dweight = torch.empty_like(weight).copy_(scaled(grad_weight, theta, 0, wide))
    dot = (grad_weight.to(wide) * weight.to(wide)).unsqueeze(-1).flatten(1).sum(1)
    dbias = weight.new_empty(0)
    if bias is not None:
        upstream = torch.zeros_like(bias) if grad_bias is None else grad_bias
        dbias = scaled(upstream, theta, 0, wide).to(bias.dtype)
        dot = dot + upstream.to(wide) * bias.to(wide)
    return dweight, dbias, torch.where(theta <= 0, torch.zeros_like(dot), dot).to(theta.dtype)


def filter(x: torch.Tensor, theta: torch.Tensor, dim: int = 1, relu: bool = False) -> torch.Tensor:
    y = scaled(x, theta, dim, widest(x, theta))
    return torch.empty_like(x).copy_(torch.relu(y) if relu else y)


def filter_backward(
    grad: torch.Tensor, x: torch.Tensor, theta: torch.Tensor, dim: int = 1, relu: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    wide = widest(grad, x, theta)
    grad = torch.where(x <= 0, 0.0, grad.to(wide)) if relu else grad.to(wide)
    dx = torch.empty_like(x).copy_(scaled(grad, theta, dim, wide))
    product = grad * x.to(wide)
    dtheta = product.sum().reshape(1) if len(theta) == 1 else product.transpose(0, dim).unsqueeze(-1).flatten(1).sum(1)
    dtheta = dtheta / theta.to(wide) if relu else dtheta
    return dx, torch.where(theta <= 0, torch.zeros_like(dtheta), dtheta).to(theta.dtype)


def normed(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    theta: torch.Tensor,
    eps: float,
    rms: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """(y, mean, rstd): the norm of the alive features of the last dimension; the mean (None with rms) and 1 / sqrt(var + eps)."""
    wide, alive = widest(x, weight, bias, theta), ~(theta <= 0)
    count = alive.sum().clamp(min=1)
    kept, mean = torch.where(alive, x.to(wide), 0.0), None
    if not rms:
        mean = kept.sum(-1, keepdim=True) / count
        kept = torch.where(alive, kept - mean, 0.0)
    rstd = (kept.square().sum(-1, keepdim=True) / count + eps).rsqrt()
    y = torch.where(alive, kept * rstd, 0.0)  # 0 times infinity, where nothing is alive and eps is 0
    y = y if weight is None else y * torch.where(alive, weight.to(wide), 0.0)
    y = scaled(y if bias is None else y + bias.to(wide), theta, -1, wide)
    return y.to(x.dtype), mean, rstd


def layer_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    theta: torch.Tensor,
    eps: float,
    rms: bool = False,
) -> torch.Tensor:
    return normed(x, weight, bias, theta, eps, rms)[0]


def layer_norm_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    theta: torch.Tensor,
    eps: float,
    rms: bool = False,
) -> tuple[torch.Tensor | None, ...]:
    wide, alive = widest(grad, x, weight, bias, theta), ~(theta <= 0)
    _, mean, rstd = normed(x.to(wide), weight, bias, theta, eps, rms)
    count, grad = alive.sum().clamp(min=1), torch.where(alive, grad.to(wide), 0.0)
    xhat = torch.where(alive, (x.to(wide) if mean is None else x.to(wide) - mean) * rstd, 0.0)
    h = scaled(grad if weight is None else grad * torch.where(alive, weight.to(wide), 0.0), theta, -1, wide)
    first = 0.0 if rms else h.sum(-1, keepdim=True) / count
    second = (h * xhat).sum(-1, keepdim=True) / count
    dx = torch.where(alive, rstd * (h - first - xhat * second), 0.0)
    rows = list(range(x.dim() - 1))
    sums = [(grad * xhat).sum(rows) if rows else grad * xhat, grad.sum(rows) if rows else grad]
    dweight, dbias = (
        None if t is None else scaled(g, theta, 0, wide).to(t.dtype) for g, t in zip(sums, (weight, bias), strict=True)
    )
    dtheta = sums[0] if weight is None else sums[0] * weight.to(wide)
    dtheta = dtheta if bias is None else dtheta + sums[1] * bias.to(wide)
    return dx.to(x.dtype), dweight, dbias, torch.where(alive, dtheta, 0.0).to(theta.dtype)


def group_normed(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    theta: torch.Tensor,
    groups: int,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(y, mean, rstd): the norm of each group's alive channels; the latter two (B, groups)."""
    wide, size, batch = widest(x, weight, bias, theta), len(theta) // groups, x.shape[0]
    alive, pixels = along(~(theta <= 0), x.dim(), 1).expand_as(x), x.shape[2:].numel()
    count = (~(theta <= 0)).view(groups, size).sum(1).mul(pixels).clamp(min=1)

    def averaged(t: torch.Tensor) -> torch.Tensor:
        return t.reshape(batch, groups, size * pixels).sum(2) / count

    def over_channels(t: torch.Tensor) -> torch.Tensor:
        return t.repeat_interleave(size, 1).view(batch, len(theta), *[1] * (x.dim() - 2))

    kept = torch.where(alive, x.to(wide), 0.0)
    mean = averaged(kept)
    centred = torch.where(alive, kept - over_channels(mean), 0.0)
    rstd = (averaged(centred.square()) + eps).rsqrt()
    y = torch.where(alive, centred * over_channels(rstd), 0.0)  # 0 times infinity, where nothing is alive and eps is 0
    y = y if weight is None else y * along(torch.where(theta <= 0, 0.0, weight.to(wide)), x.dim(), 1)
    y = scaled(y if bias is None else y + along(bias.to(wide), x.dim(), 1), theta, 1, wide)
    return y.to(x.dtype), mean, rstd


def compact(x: torch.Tensor, keep: Mapping[int, torch.Tensor]) -> torch.Tensor:
    """The positions ``keep`` ({dim: positions}) of x, out of place; by one gather over all dimensions."""
    places = [keep.get(d, torch.arange(n)).to(x.device) for d, n in enumerate(x.shape)]
    return x[torch.meshgrid(*places, indexing="ij")] if places else x.clone()


def aliveness(thetas: Sequence[torch.Tensor], group: Sequence[int]) -> torch.Tensor:
    groups = [
        torch.stack([t.double() for t, g in zip(thetas, group, strict=True) if g == i]) for i in range(group[-1] + 1)
    ]
    dead = [(stacked <= 0).all(0) for stacked in groups]
    counts = [(int(mask.sum()), int((~stacked.isfinite()).sum())) for mask, stacked in zip(dead, groups, strict=True)]
    head = torch.tensor(counts, dtype=torch.int64).flatten().view(torch.uint8)
    return torch.cat([head.to(thetas[0].device), *(mask.to(torch.uint8) for mask in dead)])


def bury(theta: torch.Tensor, state: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [torch.where(theta <= 0, torch.zeros_like(t), t) for t in (theta, *state)]


def linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, theta: torch.Tensor, relu: bool = False
) -> torch.Tensor:
    wide = widest(x)
    y = x.to(wide) @ torch.where(theta[:, None] <= 0, 0.0, weight.to(wide)).t()
    y = scaled(y if bias is None else y + bias.to(wide), theta, -1, wide)
    return (torch.relu(y) if relu else y).to(x.dtype)


def linear_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    theta: torch.Tensor,
    out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, ...]:
    wide = widest(x)
    grad = grad.to(wide) if out is None else torch.where(out <= 0, 0.0, grad.to(wide))
    alive = scaled(weight, theta, 0, wide)
    dx = (torch.where(theta <= 0, 0.0, grad) @ alive).to(x.dtype)
    rows = grad.reshape(x.shape[:-1].numel(), len(weight))
    columns = x.to(wide).reshape(len(rows), x.shape[-1])
    return dx, *fold_backward(rows.t() @ columns, None if bias is None else rows.sum(0), weight, bias, theta)


def conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    theta: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    relu: bool = False,
) -> torch.Tensor:
    wide = widest(x)
    bias = None if bias is None else bias.to(wide)
    weight = torch.where(along(theta, weight.dim(), 0) <= 0, 0.0, weight.to(wide))
    y = torch.convolution(x.to(wide), weight, bias, stride, padding, dilation, False, [0] * len(stride), groups)
    y = scaled(y, theta, 1, wide)
    return (torch.relu(y) if relu else y).to(x.dtype)


def conv_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    theta: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, ...]:
    wide = widest(x)
    grad = grad.to(wide) if out is None else torch.where(out <= 0, torch.zeros((), dtype=wide), grad.to(wide))
    window = (None, stride, padding, dilation, False, [0] * len(stride), groups)
    plain = torch.ops.aten.convolution_backward
    alive = torch.where(along(theta <= 0, x.dim(), 1), torch.zeros((), dtype=wide), grad)
    dx, *_ = plain(alive, x.to(wide), scaled(weight, theta, 0, wide), *window, [True, False, False])
    _, dfolded, _ = plain(grad, x.to(wide), weight.to(wide), *window, [False, True, False])
    sums = None if bias is None else grad.transpose(0, 1).flatten(1).sum(1)
    return dx.to(x.dtype), *fold_backward(dfolded, sums, weight, bias, theta)
