"""The model's real forward on a fake copy at the planned widths: a width baked into the user's code shows up here."""

import contextlib
import copy
import logging
import traceback
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from ..errors import ShrinkError
from .modules import depthwise_names, sync_sizes
from .numbers import Numbers
from .results import tensors_in
from .trace import mode_of, shortened


class Rehearsal:
    """The example inputs, kept as fake tensors (no memory), and the output shapes and numbers that each mode must keep."""

    def __init__(self, model, args, kwargs):
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.args, self.kwargs = pytree.tree_map_only(torch.Tensor, self.mode.from_tensor, (args, kwargs))
        self.depthwise = depthwise_names(model)
        self.shapes = None
        self.numbers = {}  # mode -> what Numbers found at full width

    def run(self, model, tensors, at):
        """Raise if the model cannot run with these :class:`TensorPlan` s, or gives another shape than before."""
        if self.shapes is None:
            self.shapes = self.output_shapes(model)
        try:
            shapes = self.output_shapes(model, {id(t.tensor): t.shape for t in tensors})
        except Exception as error:
            raise ShrinkError(f"{type(model).__name__} cannot run at {at}: {shortened(error)}{blame(error)}") from error
        for mode, before in self.shapes.items():
            if shapes[mode] != before:
                raise ShrinkError(
                    f"{type(model).__name__} at {at} gives outputs of shape {shapes[mode]}, expected {before}: "
                    "its forward depends on a width that is written into the code"
                )

    def output_shapes(self, model, sizes=None):
        """{mode: output shapes} of a fake copy of ``model`` whose tensors have ``sizes`` ({id(tensor): shape})."""
        with self.mode, torch.no_grad(), quiet():
            shadow = copy.deepcopy(model, self._fakes(model, sizes))
            sync_sizes(shadow, self.depthwise)
            shapes = {}
            for mode in ("train", "eval"):
                with mode_of(shadow, mode == "train"), Numbers(self.numbers.get(mode)) as numbers:
                    output = shadow(*self.args, **self.kwargs)
                self.numbers.setdefault(mode, numbers.found)
                shapes[mode] = [tuple(t.shape) for t in tensors_in(output)]
        return shapes

    def _fakes(self, model, sizes):
        """Fake twins of all parameters and buffers, as deepcopy's memo: the copy takes no memory."""
        fakes = {}
        for tensor in (*model.parameters(), *model.buffers()):
            shape = (sizes or {}).get(id(tensor), tensor.shape)
            fake = torch.empty(shape, dtype=tensor.dtype, device=tensor.device)
            is_parameter = isinstance(tensor, torch.nn.Parameter)
            fakes[id(tensor)] = torch.nn.Parameter(fake, tensor.requires_grad) if is_parameter else fake
        return fakes


@contextlib.contextmanager
def quiet():
    """Fake tensors log the traceback of what fails, which here is an answer."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def blame(error):
    """The innermost line of the user's code: the last one outside torch and this package."""
    ours = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]))
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(ours)]
    frames = [f for f in frames if Path(f.filename).exists() and "copy.py" not in f.filename]
    return f" ({frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line})" if frames else ""
