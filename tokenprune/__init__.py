"""Visual-token pruning for Hugging Face vision-language models."""

from ._version import __version__
from .api import (
    is_wrapped,
    losses,
    paused,
    stats,
    supported,
    track,
    unwrap,
    wrap,
)
from .config import MethodConfig
from .io import load_heads, save_heads
from .layout import VisualLayout
from .measure import PruneStats, draw
from .methods import (
    ATPConfig,
    Context,
    DivPruneConfig,
    DownsampleConfig,
    FastVConfig,
    IDSelectionConfig,
    MatryoshkaConfig,
    Method,
    PruMergeConfig,
    PyramidDropConfig,
    RandomConfig,
    Received,
    Selection,
    SparseVLMConfig,
    UniformConfig,
    VisionZipConfig,
    register_method,
)
from .training import calibrate, set_budget, train_only_heads

__all__ = [
    "ATPConfig",
    "Context",
    "DivPruneConfig",
    "DownsampleConfig",
    "FastVConfig",
    "IDSelectionConfig",
    "MatryoshkaConfig",
    "Method",
    "MethodConfig",
    "PruMergeConfig",
    "PruneStats",
    "PyramidDropConfig",
    "RandomConfig",
    "Received",
    "Selection",
    "SparseVLMConfig",
    "UniformConfig",
    "VisionZipConfig",
    "VisualLayout",
    "__version__",
    "calibrate",
    "draw",
    "is_wrapped",
    "load_heads",
    "losses",
    "paused",
    "register_method",
    "save_heads",
    "set_budget",
    "stats",
    "supported",
    "track",
    "train_only_heads",
    "unwrap",
    "wrap",
]
