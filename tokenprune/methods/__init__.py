"""The pruning methods, by the name in their configuration."""

from __future__ import annotations

from typing import Any

from ..config import MethodConfig, shown
from .atp import ATPConfig
from .base import NEEDS, Context, Method, Received, Selection, Tower, Trace
from .divprune import DivPruneConfig
from .downsample import DownsampleConfig
from .fastv import FastVConfig
from .idselection import IDSelectionConfig
from .matryoshka import MatryoshkaConfig
from .prumerge import PruMergeConfig
from .pyramiddrop import PyramidDropConfig
from .random import RandomConfig
from .registry import METHODS, build, register_method
from .sparsevlm import SparseVLMConfig
from .uniform import UniformConfig
from .visionzip import VisionZipConfig

__all__ = [
    "METHODS",
    "NEEDS",
    "ATPConfig",
    "Context",
    "DivPruneConfig",
    "DownsampleConfig",
    "FastVConfig",
    "IDSelectionConfig",
    "MatryoshkaConfig",
    "Method",
    "PruMergeConfig",
    "PyramidDropConfig",
    "RandomConfig",
    "Received",
    "Selection",
    "SparseVLMConfig",
    "Tower",
    "Trace",
    "UniformConfig",
    "VisionZipConfig",
    "build",
    "config_from",
    "register_method",
]


def config_from(values: dict[str, Any]) -> MethodConfig:
    """The configuration in a dictionary that names its method.

    Raises
    ------
    ValueError
        If the method is not known, or a value is outside what it allows.
    """
    name = values.get("method")
    if not isinstance(name, str) or name not in METHODS:
        raise ValueError(
            f"method={shown(name)} is not known: expected one of {sorted(METHODS)}. Were the heads "
            "saved by a newer tokenprune?"
        )
    return METHODS[name][0].from_dict(values)
