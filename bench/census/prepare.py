"""A model as the census needs it: float64 throughout, nothing random in its forward, no weights whose mistakes would cancel."""

import sys
import types

import torch

own_process = False  # whether this process is there for one model alone, so that torch may be changed in it
DROPS = ("Dropout", "StochasticDepth", "DropPath")


def prepared(model, args, kwargs):
    """(model, args, kwargs), the model changed in place and in evaluation mode."""
    if own_process:
        widen_casts()
    model = model.double().eval()
    calm(model)
    make_generic(model)
    widened = lambda t: t.double() if torch.is_tensor(t) and t.is_floating_point() else t  # noqa: E731
    args, kwargs = torch.utils._pytree.tree_map(widened, (args, kwargs))
    return model, args, kwargs


def calm(model):
    """No dropout, stochastic depth or layer drop, also where a forward reads the probability from an attribute or a config."""
    for module in model.modules():
        if any(word in type(module).__name__ for word in DROPS) and hasattr(module, "p"):
            module.p = 0.0
        holders = [module, *(value for value in vars(module).values() if type(value).__name__.endswith("Config"))]
        for holder in holders:
            for name, value in list(vars(holder).items()):
                if "drop" in name and isinstance(value, float):
                    setattr(holder, name, 0.0)


@torch.no_grad()
def make_generic(model):
    """What starts as one constant (norms, biases, layer scales) gets spread, and batch norms their statistics."""
    generator = torch.Generator().manual_seed(1)

    def uniform(tensor):
        return torch.rand(tensor.shape, generator=generator, dtype=torch.float64) - 0.5

    for parameter in model.parameters():
        if (
            parameter.is_floating_point()
            and parameter.numel() > 1
            and bool((parameter == parameter.flatten()[0]).all())
        ):
            parameter += 0.2 * uniform(parameter)
    for module in model.modules():
        if getattr(module, "running_mean", None) is not None:
            module.running_mean += 0.5 * uniform(module.running_mean)
            module.running_var += 0.5 * uniform(module.running_var)


def widen_casts():
    """Models that compute norms and softmaxes in float32 do it in float64: their rounding would drown what is measured.

    For the rest of the process, after the library of models was imported.
    """
    torch.Tensor.float = torch.Tensor.double
    wide = types.ModuleType("torch")
    wide.__dict__.update(vars(torch), float32=torch.float64, float=torch.float64)
    for name, module in list(sys.modules.items()):
        if name.startswith(("transformers.", "timm.")) and vars(module).get("torch") is torch:
            module.torch = wide
