"""The one place where the benchmarks touch what is not the package's public interface."""

import copy
import importlib


def optional(name):
    """A module of the package that this checkout may lack; None then."""
    try:
        return importlib.import_module(f"shrinknets_fast.{name}")
    except ModuleNotFoundError:
        return None


def paths(layer):
    """{path: callable} for every path of the dispatch table that ``layer`` can take; the callables share its parameters."""
    dispatch = optional("dispatch")
    if dispatch is None or not hasattr(layer, "path"):
        return {}
    fits_triton = layer.theta.is_cuda and layer.weight.dtype in dispatch.TRITON_DTYPES
    names = [p for p in dispatch.PATHS if p != "reference" and (p != "triton" or fits_triton)]
    return {name: on_path(layer, name) for name in names}


def on_path(layer, name):
    twin = copy.copy(layer)
    twin.path = name
    return twin


def places(kept, size, fill):
    """The positions that :func:`compact` wants, as a collection's plan has them: in order, or the holes filled from the tail."""
    return optional("ops.compact").fill(kept, size) if fill else kept


def compact(tensors, keep):
    """Compact ``tensors`` in place: keep[i] is {dim: places} of tensors[i], on the CPU."""
    optional("ops.compact").compact_(list(zip(tensors, keep, strict=True)))


def why_no_compact():
    """Why :func:`compact` cannot be called, or an empty string."""
    return "" if hasattr(optional("ops.compact"), "compact_") else "this build has no compact_"


def planned(collector):
    """A call that carries out what ``collector`` plans now, the planning itself done."""
    plan = collector.plan()
    return lambda: optional("work").prepare(collector._reading, collector._companions, lambda: plan).commit()


def why_no_apply():
    """Why :func:`planned` cannot be called (another commit's collector, say), or an empty string."""
    return "" if hasattr(optional("work"), "prepare") else "this collector cannot be asked to apply alone"
