"""The pruning methods, by the name in their configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..config import MethodConfig, ModelFacts, shown
from .atp import ATP, ATPConfig
from .base import Context, Method, Received, Selection, Tower, Trace
from .divprune import DivPrune, DivPruneConfig
from .downsample import Downsample, DownsampleConfig
from .fastv import FastV, FastVConfig
from .idselection import IDSelection, IDSelectionConfig
from .matryoshka import Matryoshka, MatryoshkaConfig
from .prumerge import PruMerge, PruMergeConfig
from .pyramiddrop import PyramidDrop, PyramidDropConfig
from .random import Random, RandomConfig
from .sparsevlm import SparseVLM, SparseVLMConfig
from .uniform import Uniform, UniformConfig
from .visionzip import VisionZip, VisionZipConfig

__all__ = [
    "METHODS",
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
]

# Name → (configuration, method). A method is built from its configuration and the model's facts.
METHODS: dict[str, tuple[type[MethodConfig], Callable[..., Method]]] = {
    "atp": (ATPConfig, ATP),
    "divprune": (DivPruneConfig, DivPrune),
    "downsample": (DownsampleConfig, Downsample),
    "fastv": (FastVConfig, FastV),
    "idselection": (IDSelectionConfig, IDSelection),
    "matryoshka": (MatryoshkaConfig, Matryoshka),
    "prumerge": (PruMergeConfig, PruMerge),
    "pyramiddrop": (PyramidDropConfig, PyramidDrop),
    "random": (RandomConfig, Random),
    "sparsevlm": (SparseVLMConfig, SparseVLM),
    "uniform": (UniformConfig, Uniform),
    "visionzip": (VisionZipConfig, VisionZip),
}


def build(config: MethodConfig, facts: ModelFacts) -> Method:
    """The method that a fitted configuration asks for."""
    return METHODS[config.method][1](config, visual_tokens=facts.visual_tokens)


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
