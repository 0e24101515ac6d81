"""A model that fully_shard has sharded: its plain twin is read and planned with, and what the plan says happens to the parts."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..checks import check_gradients
from ..companions import Companions
from ..companions.others import forgotten, is_held_weakly, note_shrunk
from ..companions.state import Member
from ..errors import ShrinkError
from ..graph.plan import Plan, TensorPlan
from ..graph.reading import Reading
from ..graph.trace import lookup
from ..interrupts import uninterrupted
from ..ops.compact import compact_
from ..sharded import is_sharded, local_part
from ..watch import Filters, Watch
from ..work import keep_in_checkpoints
from . import fsdp
from .rows import take, whole
from .twin import inputs_as_meta, plain_twin


class Sharding:
    """``model``: as fully_shard left it. ``twin``: the same without memory and without shards. ``group``, ``device``: of and on
    which its ranks communicate."""

    def __init__(self, model: nn.Module) -> None:
        fsdp.reshard(model)
        fsdp.check(model)
        self.model = model
        mesh = fsdp.mesh_of(model)
        self.group = mesh.get_group() if mesh.ndim == 1 else None
        self.parameters = fsdp.parameters(model)  # found once: each look asks for every theta
        self.device = next(iter(self.parameters.values())).device
        self.twin = plain_twin(model)

    def own(self, name: str) -> torch.Tensor:
        """The model's parameter, of which this rank has a part, or its buffer."""
        p = self.parameters.get(name)
        tensor = lookup(self.model, name) if p is None else p.sharded_param
        assert tensor is not None  # the twin has it
        return tensor

    def theta(self, name: str) -> torch.Tensor:
        """Of the filter with this name."""
        return self.own(f"{name}.theta" if name else "theta")


class ShardedWatch(Watch):
    """Looks at whole thetas. :meth:`refresh` gathers them, on all ranks; what is asked then is about those."""

    def __init__(self, filters: Filters, sharding: Sharding) -> None:
        super().__init__(filters, lambda name, theta: ())
        self._sharding = sharding
        self._is_fresh = False

    def refresh(self) -> None:
        named = {key: name for key, (name, _) in self._filters.items()}
        parts = [self._sharding.theta(name).detach() for name in named.values()]
        found = whole(parts, self._sharding.device)
        self._thetas = {key: (named[key], theta) for key, theta in zip(named, found, strict=True)}
        self._is_fresh = True

    def masks(self) -> dict[int, torch.Tensor]:
        if not self._is_fresh:
            self.refresh()
        self._is_fresh = False
        return super().masks()


class ShardedReading(Reading):
    """Of the twin; its ``thetas`` and checks are those of the model."""

    def __init__(self, sharding: Sharding, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__(sharding.twin, inputs_as_meta(args), inputs_as_meta(kwargs))
        self.sharding = sharding
        self.watch = ShardedWatch(self.filters, sharding)
        self.thetas = [sharding.theta(name) for name, _ in self.filters.values()]

    def tensors(self) -> list[tuple[str, torch.Tensor]]:
        return [(name, self.sharding.own(name)) for name, _ in super().tensors()]

    def check_filters(self) -> None:
        super().check_filters()
        for (name, _), theta in zip(self.filters.values(), self.thetas, strict=True):
            if self.sharding.theta(name) is not theta:
                raise ShrinkError(f"{name}.theta was replaced since the model was traced; make a new GarbageCollector")

    def check_quickly(self, gradients: bool) -> None:
        self.check_filters()
        if gradients:
            check_gradients(self.sharding.model.parameters())

    def check(self) -> None:
        fsdp.reshard(self.sharding.model)
        super().check()
        fsdp.check_idle(self.sharding.model)
        for name, twin in super().tensors():
            found, expected = tuple(self.sharding.own(name).shape), tuple(twin.shape)
            if found != expected:
                raise ShrinkError(f"{name} has shape {found}, expected {expected}; make a new GarbageCollector")
        check_gradients(self.sharding.model.parameters())

    def shrink(self, plan: Plan) -> None:
        for t in plan.tensors:
            t.tensor.set_(torch.empty(t.shape, dtype=t.tensor.dtype, device="meta"))  # type: ignore[call-overload]
        super().shrink(plan)
        self.rehearsal.sizes.sync(self.sharding.model)


class ShardedWork:
    """As :class:`Work`, for the parts: one tensor after the other, so that no rank has more than its part of one twice."""

    def __init__(self, reading: ShardedReading, companions: Companions, plan: Plan) -> None:
        self.plan, self._reading, self._sharding = plan, reading, reading.sharding
        self._tensors: list[tuple[TensorPlan, Any, list[Member]]] = []
        for t in plan.tensors:
            own = reading.sharding.own(t.name)
            members = companions.members(t.name, own)
            for member in members:
                if is_sharded(own):
                    check_member(t.name, own, member.tensor)
            check_exchangeable(t.name, own)
            self._tensors.append((t, self._sharding.parameters.get(t.name), members))

    @torch.no_grad()
    def commit(self) -> tuple[int, int]:
        """Returns (bytes written, bytes no longer used) on this rank."""
        if not self.plan:
            return 0, 0
        moved = used = 0
        sizes = []
        with uninterrupted():
            for t, p, members in self._tensors:
                used += sum(local_part(member.tensor).nbytes for member in members)
                if p is not None:
                    sizes += [(p.sharded_param, shape) for shape in [t.tensor.shape, *forgotten(p.sharded_param)]]
                moved += self._shrink(t, p, members)
            fsdp.forget_layouts(self._sharding.model)
            names = [name for t, *_ in self._tensors for name in self._reading.network.bound[id(t.tensor)].names]
            self._reading.shrink(self.plan)
            keep_in_checkpoints(self._sharding.model, names)
        note_shrunk((tensor, tuple(shape)) for tensor, shape in sizes)
        return moved, used - moved

    def _shrink(self, t: TensorPlan, p: Any, members: list[Member]) -> int:
        """Returns the bytes that are left."""
        if p is None:
            compact_([(member.tensor, member.kept(t.keep, t.name)) for member in members])
            return sum(member.tensor.nbytes for member in members)
        own = p.sharded_param
        gradient = None if own.grad is None else self._part(own.grad, t.keep)
        for member in members:
            if member.tensor is not own and member.tensor is not own.grad:
                torch.utils.swap_tensors(member.tensor, self._part(member.tensor, member.kept(t.keep, t.name)))
        fsdp.resize(p, t.shape, take(own, t.keep, self._sharding.device))
        own.grad = gradient
        state = [member.tensor for member in members[2 if gradient is not None else 1 :]]
        return sum(local_part(tensor).nbytes for tensor in (own, gradient, *state) if tensor is not None)

    def _part(self, tensor: torch.Tensor, keep: dict[int, torch.Tensor]) -> torch.Tensor:
        shape = [keep[d].shape[-1] if d in keep else n for d, n in enumerate(tensor.shape)]
        return fsdp.sharded_as(tensor, shape, take(tensor, keep, self._sharding.device))


def check_member(name: str, own: Any, tensor: Any) -> None:
    """Gradients and state have the parts that their parameter has."""
    if not is_sharded(tensor):
        what = f"{name}: a tensor of shape {tuple(tensor.shape)} in its optimizer's state is whole"
        raise ShrinkError(f"{what}, expected a DTensor as the parameter; this optimizer cannot be followed here")
    if tensor.placements != own.placements or tensor.device_mesh != own.device_mesh:
        raise ShrinkError(f"{name}: its gradient or state is placed as {tensor.placements}, expected {own.placements}")


def check_exchangeable(name: str, tensor: torch.Tensor) -> None:
    """torch exchanges what is in a tensor only where nothing refers to it weakly, as compiled code does."""
    if not is_sharded(tensor):
        return
    if is_held_weakly(tensor):
        torch.compiler.reset()
    if is_held_weakly(tensor):
        raise ShrinkError(f"{name}: something refers to it by a weak reference, so torch cannot exchange what is in it")
