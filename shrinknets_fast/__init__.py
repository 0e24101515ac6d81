"""ShrinkNets with fused kernels: start from an oversized network and let training find its size."""

import importlib
import importlib.metadata
from types import ModuleType
from typing import TYPE_CHECKING

from . import (
    _library,  # noqa: F401  loads the ops before anything names them
    functional,
    integrations,  # its parts are imported when they are asked for
)
from .budget import Budget
from .checkpoint import load_state_dict, resize
from .collector import Collection, GarbageCollector
from .coverage import Coverage, coverage
from .errors import ShrinkError
from .filters import features, param_groups, penalty
from .folded import unfolded
from .folding import fold_filters
from .graph.rules.registry import register_rule
from .marking import mark_dead
from .nn import (
    Filter,
    FilteredBatchNorm1d,
    FilteredBatchNorm2d,
    FilteredBatchNorm3d,
    FilteredConv1d,
    FilteredConv2d,
    FilteredConv3d,
    FilteredLinear,
    FilteredSyncBatchNorm,
)
from .norms import (
    FilteredGroupNorm,
    FilteredInstanceNorm1d,
    FilteredInstanceNorm2d,
    FilteredInstanceNorm3d,
    FilteredLayerNorm,
    FilteredRMSNorm,
)
from .placement import add_filters
from .proximal import ProximalL1
from .recurrent import FilteredGRU, FilteredLSTM
from .schedule import LambdaSchedule

if TYPE_CHECKING:
    from . import sklearn as sklearn  # not in __all__: a star import would need scikit-learn


def __getattr__(name: str) -> ModuleType:
    """scikit-learn is imported when ``sklearn`` is asked for."""
    if name != "sklearn":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(".sklearn", __name__)


try:
    __version__ = importlib.metadata.version("shrinknets_fast")
except importlib.metadata.PackageNotFoundError:  # a checkout that was built but not installed
    __version__ = "unknown"

__all__ = [
    "Budget",
    "Collection",
    "Coverage",
    "Filter",
    "FilteredBatchNorm1d",
    "FilteredBatchNorm2d",
    "FilteredBatchNorm3d",
    "FilteredConv1d",
    "FilteredConv2d",
    "FilteredConv3d",
    "FilteredGRU",
    "FilteredGroupNorm",
    "FilteredInstanceNorm1d",
    "FilteredInstanceNorm2d",
    "FilteredInstanceNorm3d",
    "FilteredLSTM",
    "FilteredLayerNorm",
    "FilteredLinear",
    "FilteredRMSNorm",
    "FilteredSyncBatchNorm",
    "GarbageCollector",
    "LambdaSchedule",
    "ProximalL1",
    "ShrinkError",
    "__version__",
    "add_filters",
    "coverage",
    "features",
    "fold_filters",
    "functional",
    "integrations",
    "load_state_dict",
    "mark_dead",
    "param_groups",
    "penalty",
    "register_rule",
    "resize",
    "unfolded",
]
