"""Processes that train one model, as torchrun starts them: each has its share of every batch, rank 0 alone writes and speaks."""

import contextlib
import os

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from ..errors import ShrinkError
from .refusal import Refusal

CHECK = 8  # steps between questions whether to stop, each of which waits for all ranks


class Alone:
    rank, size, local = 0, 1, 0

    def wrapped(self, model):
        return model

    @contextlib.contextmanager
    def agreed(self):
        yield

    def in_turn(self, load):
        return load()

    def from_first(self, value):
        return value

    def total(self, tensor):
        return tensor

    def stop(self, interrupt, step, last):
        return bool(interrupt)


class Several:
    """``rank`` of ``size``, the ``local``-th of its machine. All make the same calls, in the same order."""

    def __init__(self):
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()
        self.local = int(os.environ.get("LOCAL_RANK", self.rank))

    def wrapped(self, model):
        device = next(model.parameters()).device
        return DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)

    @contextlib.contextmanager
    def agreed(self):
        """What one rank refuses inside, all refuse; rank 0 says it."""
        error = None
        try:
            yield
        except ShrinkError as caught:
            error = caught
        errors: list[str | None] = [None] * self.size
        distributed.all_gather_object(errors, None if error is None else str(error))
        for rank, text in enumerate(errors):
            if text is not None:
                refusal = Refusal(f"rank {rank}: {text}" if rank else text)
                refusal.said_elsewhere = self.rank > 0
                raise refusal from error

    def in_turn(self, load):
        """What ``load()`` gives; the first rank of each machine before its others, which find what it has downloaded."""
        found = None
        for turn in (True, False):
            with self.agreed():
                if (self.local == 0) == turn:
                    found = load()
        return found

    def from_first(self, value):
        """Rank 0's ``value``."""
        values = [value]
        distributed.broadcast_object_list(values)
        return values[0]

    def total(self, tensor):
        distributed.all_reduce(tensor)
        return tensor

    def stop(self, interrupt, step, last):
        """Whether any rank was interrupted, asked at the same steps on all; ``last``: of the epoch."""
        if step % CHECK and not last:
            return False
        flag = torch.tensor(int(bool(interrupt)))
        distributed.all_reduce(flag, op=distributed.ReduceOp.MAX)
        return bool(flag)


@contextlib.contextmanager
def processes():
    """:class:`Alone`, or :class:`Several` where torchrun has started more than one."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield Alone()
        return
    try:
        distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    except (ValueError, RuntimeError) as error:
        raise Refusal(f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but the processes cannot meet: {error}") from error
    try:
        yield Several()
    finally:
        distributed.destroy_process_group()
