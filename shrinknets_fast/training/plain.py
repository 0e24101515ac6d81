"""plain.pt2: the folded network as a ``torch.export`` program that needs nothing but torch."""

import torch

from .. import fold_filters
from .files import replace


def export(model, images, path):
    """Write the program (it lives on the CPU, for any batch size) and return the plain network."""
    plain = fold_filters(model).eval().cpu()
    program = torch.export.export(plain, (images[:2].cpu().clone(),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    replace(path, lambda file: torch.export.save(program, file))
    return plain


@torch.no_grad()
def max_abs_diff(model, path, images, chunk=1000):
    """The largest difference of a logit between the trained model and the program as it was written."""
    program = torch.export.load(path).module()
    model.eval()
    worst = max((model(x).cpu() - program(x.cpu())).abs().max().item() for x in images.split(chunk))
    model.train()
    return worst
