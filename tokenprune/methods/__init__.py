"""The pruning methods, by the name in their configuration.

Every file and folder here is imported, so that a method is registered by being here.
"""

from __future__ import annotations

from dataclasses import MISSING, fields
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from ..checks import shown
from ..config import MethodConfig
from .atp import ATPConfig
from .base import Method
from .cdpruner import CDPrunerConfig
from .context import (
    ATTENTION_NEEDS,
    NEEDS,
    STATE_NEEDS,
    Context,
    Criterion,
    Received,
    Selection,
    Tower,
    Trace,
)
from .dart import DARTConfig
from .divprune import DivPruneConfig
from .downsample import DownsampleConfig
from .fastv import FastVConfig
from .idselection import IDSelectionConfig
from .matryoshka import MatryoshkaConfig
from .prumerge import PruMergeConfig
from .pyramiddrop import PyramidDropConfig
from .random import RandomConfig
from .ranking import RankingMethod
from .registry import METHODS, build, register_method
from .sparsevlm import SparseVLMConfig
from .uniform import UniformConfig
from .visionzip import VisionZipConfig

__all__ = [
    "ATTENTION_NEEDS",
    "METHODS",
    "NEEDS",
    "STATE_NEEDS",
    "ATPConfig",
    "CDPrunerConfig",
    "Context",
    "Criterion",
    "DARTConfig",
    "DivPruneConfig",
    "DownsampleConfig",
    "FastVConfig",
    "IDSelectionConfig",
    "MatryoshkaConfig",
    "Method",
    "PruMergeConfig",
    "PyramidDropConfig",
    "RandomConfig",
    "RankingMethod",
    "Received",
    "Selection",
    "SparseVLMConfig",
    "Tower",
    "Trace",
    "UniformConfig",
    "VisionZipConfig",
    "build",
    "config_from",
    "config_named",
    "register_method",
]

for _found in iter_modules(__path__):
    import_module(f"{__name__}.{_found.name}")


def config_from(values: dict[str, Any]) -> MethodConfig:
    """Return the configuration in a dictionary that names its method.

    Raises
    ------
    ValueError
        If the method is not known, or a value is outside what it allows.

    Examples
    --------
    >>> config_from({"method": "fastv", "layer": 2, "keep": 64})
    FastVConfig(positions='kept', layer=2, keep=64)
    """
    name = values.get("method")
    if not isinstance(name, str) or name not in METHODS:
        raise ValueError(
            f"method={shown(name)} is not known: expected one of {sorted(METHODS)}. Were the heads "
            "saved by a newer tokenprune?"
        )
    return METHODS[name][0].from_dict(values)


def config_named(name: str) -> MethodConfig:
    """Return a method's default configuration.

    Raises
    ------
    ValueError
        If no method has that name, or its configuration has a field without a default.

    Examples
    --------
    >>> config_named("fastv") == FastVConfig()
    True
    """
    if name not in METHODS:
        raise ValueError(
            f"method={shown(name)} is not the name of a method: expected one of {sorted(METHODS)}, "
            'or, for saved heads, a folder that exists or the hub\'s "owner/repository".'
        )
    config = METHODS[name][0]
    required = [f.name for f in fields(config) if f.default is f.default_factory is MISSING]
    if required:
        raise ValueError(
            f"method={name!r}: {config.__name__} has no default for {', '.join(required)}: give a "
            f"{config.__name__} instead of the name."
        )
    return config()
