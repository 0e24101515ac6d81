"""The providers of one filtered layer: its inputs, its float64 reference, and what is timed."""

from functools import cached_property

import torch
from torch.utils.flop_counter import FlopCounterMode

from . import adapters
from .closeness import as_close_as
from .compiling import compiled
from .memory import saved_bytes
from .models import plain, unfused
from .registry import OURS, Provider
from .timing import rotated

DEAD = 0.1


class Group:
    """What the cases forward, backward and both of one layer share."""

    def __init__(self, shape, options):
        self.shape, self.options, self.device = shape, options, options.device

    @cached_property
    def ours(self):
        layer = self.shape.make().to(self.device, self.shape.dtype)
        if self.shape.channels_last:
            layer.to(memory_format=torch.channels_last)
        with torch.no_grad():
            layer.theta[torch.rand_like(layer.theta) < DEAD] = -0.1
        return layer

    @cached_property
    def calls(self):
        """{provider: callable}, or the reason why it cannot be called."""
        authors = unfused(self.ours)
        calls = {OURS: self.ours, "unfused": authors}
        if self.ours.plain is not None:
            calls["plain"] = plain(self.ours)
        if self.shape.compile or not self.options.quick:
            calls["unfused, torch.compile"] = compiled(authors, self.device)
        calls |= {f"{OURS}: {path}": call for path, call in adapters.paths(self.ours).items()}
        return {name: self.in_context(call) for name, call in calls.items()}

    def in_context(self, call):
        if isinstance(call, str) or not self.shape.autocast:
            return call

        def under_autocast(x):
            with torch.autocast(self.device.type, torch.bfloat16):
                return call(x)

        return under_autocast

    @cached_property
    def sets(self):
        """[(x, upstream gradient)], past the cache in total."""
        like = self.calls["unfused"](self.draw(self.shape.input).detach())
        size = (self.draw(self.shape.input).nbytes + like.nbytes) * 2  # x, y and their gradients
        return rotated(lambda: (self.draw(self.shape.input), torch.randn_like(like)), size, self.device)

    def draw(self, shape):
        x = torch.randn(shape, device=self.device, dtype=self.shape.dtype)
        return (x.contiguous(memory_format=torch.channels_last) if self.shape.channels_last else x).requires_grad_()

    def both(self, call, parameters, k=0):
        x, gradient = self.sets[k % len(self.sets)]
        output = call(x)
        return output, torch.autograd.grad(output, [x, *parameters], gradient)

    @cached_property
    def checks(self):
        """{part: check} against the unfused composition in float64."""
        output, gradients = self.both(self.calls["unfused"], list(self.ours.parameters()))
        wide = self.shape.make().to(self.device, torch.float64)
        wide.load_state_dict(self.ours.state_dict())
        x, gradient = self.sets[0]
        x = x.detach().double().requires_grad_()
        exact = unfused(wide)(x)
        exact_gradients = torch.autograd.grad(exact, [x, *wide.parameters()], gradient.double())
        measured = {"forward": [output], "backward": list(gradients), "both": [output, *gradients]}
        expected = {"forward": [exact], "backward": list(exact_gradients), "both": [exact, *exact_gradients]}
        dtype = torch.bfloat16 if self.shape.autocast else self.shape.dtype
        return {part: as_close_as(measured[part], expected[part], dtype) for part in measured}

    def case(self, part):
        """(providers, check) for the registry."""
        for backend in (torch.backends.cuda.matmul, torch.backends.cudnn):
            backend.allow_tf32 = self.shape.tf32  # cuDNN's default is True
        providers = {}
        for name, call in self.calls.items():
            providers[name] = call if isinstance(call, str) else self.provider(part, name, call)
        providers |= self.bounds(part)
        return providers, lambda name, result: self.checks[part](result)

    def provider(self, part, name, call):
        layer = self.calls["plain"] if name == "plain" else self.ours
        parameters = list(layer.parameters())
        role = {OURS: "ours", "plain": "plain"}.get(name, "path" if name.startswith(OURS) else "rival")
        options = {"role": role, "checked": role != "plain"}
        if part == "forward":
            if "compile" not in name:  # it would compile again for the other batch
                options["more"] = lambda: {"saved_bytes": self.saved(call)}
            return Provider(lambda k: [call(self.sets[k % len(self.sets)][0])], **options)
        if part == "both":

            def run(k):
                output, gradients = self.both(call, parameters, k)
                return [output, *gradients]

            return Provider(run, **options)

        def forward(k):
            x, gradient = self.sets[k % len(self.sets)]
            return call(x), [x, *parameters], gradient

        return Provider(lambda state: torch.autograd.grad(*state), prepare=forward, **options)

    def saved(self, call):
        """Bytes kept for the backward that grow with the batch: parameters and folded weights do not."""
        once, twice = (self.draw((n * self.shape.input[0], *self.shape.input[1:])) for n in (1, 2))
        return saved_bytes(lambda: call(twice)) - saved_bytes(lambda: call(once))

    def bounds(self, part):
        """A matmul of the same number of operations, and a copy_ of the bytes that must be read and written at least."""
        share = {"forward": 1, "backward": 2, "both": 3}[part]
        found = {}
        x, gradient = self.sets[0]
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            self.calls["unfused"](x)
        if counter.get_total_flops():
            found["matmul"] = matmul_bound(share * counter.get_total_flops(), x)
        forward = x.numel() + gradient.numel() + sum(p.numel() for p in self.ours.parameters())
        backward = 2 * x.numel() + gradient.numel() + 2 * sum(p.numel() for p in self.ours.parameters())
        moved = {"forward": forward, "backward": backward, "both": forward + backward}[part]
        found["copy_"] = copy_bound(moved, x)
        return found


def matmul_bound(operations, like):
    """One square product of ``operations`` multiplications and additions, in the dtype and on the device of ``like``."""
    side = max(1, round((operations / 2) ** (1 / 3)))
    a, b = (torch.randn(side, side, dtype=like.dtype, device=like.device) for _ in range(2))
    return Provider(lambda _: torch.mm(a, b), role="bound", checked=False)


def copy_bound(moved, like):
    """A copy_ that reads and writes ``moved`` elements in all."""
    source, target = (torch.randn(max(1, moved // 2), dtype=like.dtype, device=like.device) for _ in range(2))
    return Provider(lambda _: target.copy_(source), role="bound", checked=False)
