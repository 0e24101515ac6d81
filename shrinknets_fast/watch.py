"""What is dead, as the host sees it: at once, or a step later without ever waiting for the device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch

from .errors import ShrinkError
from .ops.aliveness import aliveness, counts_in, masks_in

Filters = Mapping[int, tuple[str, torch.Tensor]]  # id(theta) -> (name, theta)


class Watch:
    """filters: {key: (name, theta)}; copies(name, theta): the thetas of its copies, which must be dead too."""

    def __init__(self, filters: Filters, copies: Callable[[str, torch.Tensor], Iterable[torch.Tensor]]) -> None:
        self._filters = self._thetas = filters
        self._copies = copies
        # of the look that is under way: (keys, sizes, bytes on the host, event)
        self._looks: list[tuple[list[int], list[int], torch.Tensor, torch.cuda.Event | None]] = []

    def refresh(self) -> None:
        """What is asked next is about the thetas as they are now. Where ranks have parts of them all of them call it."""

    def masks(self) -> dict[int, torch.Tensor]:
        """{key: mask of its dead features} now, on the CPU. One copy from each device."""
        found: dict[int, torch.Tensor] = {}
        for keys, sizes, seen in self._seen():
            seen = seen.cpu()
            self._check(keys, counts_in(seen, len(sizes)))
            found.update(zip(keys, masks_in(seen, sizes), strict=True))
        return {key: found[key] for key in self._filters}

    def look(self) -> None:
        """Start a look, unless one is under way."""
        if not self._looks:
            for keys, sizes, seen in self._seen():
                event = None
                if seen.is_cuda:
                    event = torch.cuda.Event()
                    stream = torch.cuda.current_stream(seen.device)
                    seen = seen.to("cpu", non_blocking=True)  # into pinned memory
                    event.record(stream)
                self._looks.append((keys, sizes, seen, event))

    def watched(self) -> list[tuple[str, torch.Tensor]]:
        """(name, theta) of all that decide what is dead, copies too."""
        own = [(f"{name}.theta" if name else "theta", name, theta) for name, theta in self._thetas.values()]
        copies = [(f"{full} in a copy", copy) for full, name, theta in own for copy in self._copies(name, theta)]
        return [(full, theta) for full, _, theta in own] + copies

    def forget(self) -> None:
        """Drop the look that is under way: what it saw has been collected."""
        self._looks = []

    def counts(self, wait: bool = False) -> dict[int, tuple[int, int]] | None:
        """{key: (dead, all)} of the look that was started, or None while it has not arrived, unless it is waited for."""
        for *_, event in self._looks if wait else ():
            if event is not None:
                event.synchronize()
        if not self._looks or not all(event is None or event.query() for *_, event in self._looks):
            return None
        looks, self._looks = self._looks, []
        found: dict[int, tuple[int, int]] = {}
        for keys, sizes, seen, _ in looks:
            counts = counts_in(seen, len(sizes))
            self._check(keys, counts)
            found.update(zip(keys, zip(counts[::2], sizes, strict=True), strict=True))
        return found

    def _seen(self) -> Iterator[tuple[list[int], list[int], torch.Tensor]]:
        """(keys, sizes, result of the op) for each device."""
        devices: dict[torch.device, list[tuple[int, list[torch.Tensor]]]] = {}
        for key, (name, theta) in self._thetas.items():
            group = [theta, *(copy.detach().to(theta.device, non_blocking=True) for copy in self._copies(name, theta))]
            devices.setdefault(theta.device, []).append((key, group))
        for groups in devices.values():
            keys, sizes = [key for key, _ in groups], [len(group[0]) for _, group in groups]
            yield keys, sizes, aliveness([group for _, group in groups])

    def _check(self, keys: Iterable[int], counts: list[int]) -> None:
        for key, count in zip(keys, counts[1::2], strict=True):
            if count:
                name, theta = self._thetas[key]
                values = theta.detach().cpu()
                broken = values[~torch.isfinite(values)].tolist() or ["what is not finite"]  # in a copy of the model
                raise ShrinkError(f"{name}.theta holds {broken[0]}: training has diverged, nothing was removed")
