"""An optimizer is tried before it is needed: twins of it step on small tensors of which a feature dies, and stays or leaves.

So the kinds of its state are known before it has any, and a step that uses statistics of whole tensors (a norm, a mean, a trust
ratio) gives itself away: once the dead have left, the rest moves on differently.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..errors import ShrinkError, warn
from ..graph.draws import same_draws
from ..ops.compact import compact_
from .optimizers import Followed, parts_of
from .state import Layout, Member, find_layouts, tensors_of
from .twin import representatives, twin

# Sizes of a trial's dimensions: no two alike, nor where each is one less. Some optimizers keep other state for matrices with so
# many rows and columns; where their parameter has as many, a trial's have more.
SMALL = (11, 9, 7, 5, 3)
THRESHOLDS = (128, 64, 32, 16)
STEPS = 4
TOLERANCE = {torch.float64: 1e-7, torch.float32: 1e-3}  # of the largest movement
COARSE = 0.1  # for other dtypes


def try_out(followed: Followed) -> None:
    """Fill ``followed.layouts``. Raises ShrinkError for state that no removal can follow; warns of what goes on differently."""
    for part in followed.parts:
        if not getattr(type(part).step, "hooked", False):  # a wrapper: what is inside is tried
            continue
        name = type(part).__name__
        try:
            layouts, drift = trial(part)
        except ShrinkError as error:
            raise ShrinkError(
                f"optimizers holds {name}, which cannot be followed: {error}; use another optimizer"
            ) from None
        except Exception as error:
            if part is not followed.parts[-1]:  # a wrapper with state of its own making: what is inside is tried
                continue
            why = (str(error).splitlines() or [type(error).__name__])[0][:200]
            words = f"{name} could not be tried ({why}): whether its state can be followed shows when features leave"
            warn(words)
            continue
        for key, layout in layouts:
            followed.layouts.setdefault(key, []).append(layout)
        if drift:
            words = f"{name} steps by statistics of whole tensors: after a removal the rest goes on differently"
            warn(f"{words} (in a trial by {drift:.2g} of a step)")


def trial(optimizer: torch.optim.Optimizer) -> tuple[list[tuple[tuple[int, str], Layout]], float]:
    """([((dimensions, path), Layout)], the largest difference of a movement, as a share of it, or 0 if it is rounding's)."""
    with same_draws(), torch.compiler.set_stance("force_eager"):
        wide, masked, narrow = Run(optimizer, True), Run(optimizer, True), Run(optimizer, False)
        for run in (wide, masked, narrow):
            run.go()
        if narrow.kinds() != kinds_when_small(optimizer, narrow):
            name = type(optimizer).__name__
            warn(f"{name} keeps other state for small tensors: its step fails once a removal has made one small")
        layouts = []
        for w, n in zip(wide.tensors, narrow.tensors, strict=True):
            found = find_layouts((tuple(w.shape), wide.shapes(w)), (tuple(n.shape), narrow.shapes(n)))
            layouts.append({(w.dim(), path): layout for path, layout in found.items()})
        wide.shrink(layouts)
        masked.bury()
        for run in (wide, masked):
            run.go(dead=True)
    spacings = [float(t.detach().abs().max()) * torch.finfo(t.dtype).eps for t in wide.tensors]
    drift = max((difference(*pair) for pair in zip(wide.moves, masked.moves, spacings, strict=True)), default=0.0)
    return [item for found in layouts for item in found.items()], drift


def kinds_when_small(optimizer: torch.optim.Optimizer, narrow: Run) -> list[set[str]]:
    """What :meth:`Run.kinds` is for small tensors, which ``narrow``'s may be already."""
    small = Run(optimizer, False, small_sizes)
    if small.sizes == narrow.sizes:
        return narrow.kinds()
    small.go()
    return small.kinds()


def difference(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor], spacing: float) -> float:
    """Between the movements of one tensor, whose values lie ``spacing`` apart: half types round to whole steps of it."""
    size = max(float(move.abs().max()) for move in second)
    error = max(float((a - b).abs().max()) for a, b in zip(first, second, strict=True))
    error = max(error - spacing, 0.0)
    share = error / size if size else error
    return 0.0 if share <= TOLERANCE.get(second[0].dtype, COARSE) else share


DEAD = 0  # along each dimension: some optimizers treat a tensor's first entry unlike the others


def kept(size: int) -> torch.Tensor:
    return torch.tensor([k for k in range(size) if k != DEAD])


def without_dead(tensor: torch.Tensor) -> torch.Tensor:
    for dim, size in enumerate(tensor.shape):
        tensor = tensor.index_select(dim, kept(size).to(tensor.device))
    return tensor


def sizes_for(parameter: torch.Tensor) -> tuple[int, ...]:
    least = min(parameter.shape[:2]) if parameter.dim() > 1 else 0
    reached = next((n for n in THRESHOLDS if n <= least), 0)
    return tuple(n + reached * (d < 2) for d, n in enumerate(small_sizes(parameter)))


def small_sizes(parameter: torch.Tensor) -> tuple[int, ...]:
    return SMALL[: parameter.dim()]


SizesOf = Callable[[torch.Tensor], tuple[int, ...]]


class Run:
    """A twin at work on one tensor for each group and kind of parameter. whole: with the feature that will die."""

    def __init__(self, optimizer: torch.optim.Optimizer, whole: bool, sizes_of: SizesOf = sizes_for) -> None:
        self.whole, self.tensors, self.sizes = whole, [], []
        self.generator = torch.Generator().manual_seed(0)
        groups = representatives(optimizer, lambda p: (sizes_for(p), p.dtype, p.device))
        for group in groups:
            self.sizes += (sizes := [sizes_of(p) for p in group["params"]])
            drawn = [self.of_this_run(self.random(size), p) for size, p in zip(sizes, group["params"], strict=True)]
            group["params"] = [tensor.requires_grad_() for tensor in drawn]
            self.tensors += group["params"]
        self.slopes = [self.random(sizes) for sizes in self.sizes]
        self.moves: list[list[torch.Tensor]] = [[] for _ in self.tensors]
        self.optimizer: Any = twin(optimizer, groups)
        if hasattr(self.optimizer, "train"):  # schedule-free ones refuse to step before it
            self.optimizer.train()

    def random(self, sizes: Sequence[int]) -> torch.Tensor:
        return torch.randn(sizes, generator=self.generator, dtype=torch.float64)

    def of_this_run(self, value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return (value if self.whole else without_dead(value)).to(like.device, like.dtype)

    def go(self, dead: bool = False) -> None:
        """A few steps. dead: from now on that feature's gradients are zeros; before, its state has got a past."""
        for _ in range(STEPS):
            for p, slope in zip(self.tensors, self.slopes, strict=True):
                grad = slope + 0.5 * self.random(slope.shape)  # downhill, as in training: some find their rate by it
                for dim in range(grad.dim() if dead else 0):
                    grad.select(dim, DEAD).zero_()
                p.grad = self.of_this_run(grad, p)
            before = [p.detach().clone() for p in self.tensors]
            try:
                self.optimizer.step()
            except TypeError:  # it wants a closure
                self.optimizer.step(lambda: torch.zeros(()))
            for moves, p, b in zip(self.moves, self.tensors, before, strict=True):
                moves.append(without_dead(p.detach() - b) if self.whole else p.detach() - b)

    def state(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        return {path: t for part in parts_of(self.optimizer) for path, t in tensors_of(part.state.get(parameter, {}))}

    def kinds(self) -> list[set[str]]:
        """Of each tensor the paths in its state."""
        return [set(self.state(tensor)) for tensor in self.tensors]

    def shapes(self, parameter: torch.Tensor) -> dict[str, tuple[int, ...]]:
        return {path: tuple(t.shape) for path, t in self.state(parameter).items()}

    @torch.no_grad()
    def bury(self) -> None:
        """What a guard does to the state of thetas, which are vectors."""
        for p in [p for p in self.tensors if p.dim() == 1]:
            for tensor in [t for t in self.state(p).values() if t.shape == p.shape]:
                tensor[DEAD] = 0

    @torch.no_grad()
    def shrink(self, layouts: Sequence[dict[tuple[int, str], Layout]]) -> None:
        """What a collection does."""
        for p, found in zip(self.tensors, layouts, strict=True):
            for path, tensor in self.state(p).items():
                member = Member.of(tensor, found[p.dim(), path].dims, p.shape)
                compact_([(member.tensor, member.kept({d: kept(size) for d, size in enumerate(p.shape)}))])
                member.put_in_row()
        for p in self.tensors:
            p.grad = None
            compact_([(p, {dim: kept(size) for dim, size in enumerate(p.shape)})])
        self.whole = False
