"""Visual-token pruning for Hugging Face vision-language models."""

from ._version import __version__
from .api import (
    losses,
    paused,
    stats,
    supported,
    track,
    unwrap,
    wrap,
)
from .io import load_heads, save_heads
from .measure import PruneStats, draw
from .methods import (
    ATPConfig,
    DivPruneConfig,
    DownsampleConfig,
    FastVConfig,
    IDSelectionConfig,
    MatryoshkaConfig,
    PruMergeConfig,
    PyramidDropConfig,
    RandomConfig,
    SparseVLMConfig,
    UniformConfig,
    VisionZipConfig,
)
from .training import calibrate, set_budget, train_only_heads

__all__ = [
    "ATPConfig",
    "DivPruneConfig",
    "DownsampleConfig",
    "FastVConfig",
    "IDSelectionConfig",
    "MatryoshkaConfig",
    "PruMergeConfig",
    "PruneStats",
    "PyramidDropConfig",
    "RandomConfig",
    "SparseVLMConfig",
    "UniformConfig",
    "VisionZipConfig",
    "__version__",
    "calibrate",
    "draw",
    "load_heads",
    "losses",
    "paused",
    "save_heads",
    "set_budget",
    "stats",
    "supported",
    "track",
    "train_only_heads",
    "unwrap",
    "wrap",
]
