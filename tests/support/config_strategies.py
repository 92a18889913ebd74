"""Configurations of every method, drawn, for a model of `LAYERS` layers and 36 tokens an image."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

import tokenprune as tp
from tokenprune.config import MethodConfig

from .strategies import LAYERS

__all__ = ["CONFIGS", "every_config", "merges", "merges_between_layers"]

_KEEP = st.sampled_from([1, 5, 12, 50, 0.1, 0.4, 0.9])
_SHARE = st.sampled_from([0.05, 0.25, 0.6, 1.0])
_LAYER = st.integers(0, LAYERS - 2)
_LAYERS = st.lists(_LAYER, min_size=1, max_size=3, unique=True).map(sorted).map(tuple)


@st.composite
def _atp(draw: st.DrawFn) -> tp.ATPConfig:
    layers = draw(_LAYERS)
    return tp.ATPConfig(
        layers=layers,
        # Above what the layers up to the first module cost.
        target_tokens=36 * (layers[0] + 1) / LAYERS + 3,
        normalisation=draw(st.sampled_from(["share", "minmax", "none"])),
        averaging=draw(st.sampled_from(["visible", "all"])),
        sources=draw(st.sampled_from([("self", "cross"), ("self",), ("cross",)])),
        prunings=draw(st.sampled_from([("redundant", "spatial"), ("redundant",), ("spatial",)])),
        revival=draw(st.booleans()),
        text_threshold=draw(st.sampled_from([None, 0.3, 0.6])),
        special_ids=(7, 20),
        strides=draw(st.sampled_from([(2, 3, 4, 6), (2,), (3, 5)])),
        start_redundant=draw(st.sampled_from([-1.0, 0.0, 0.3, 2.0])),
        start_spatial=draw(st.sampled_from([-1.0, 0.5, 1.5, 3.0])),
        training=draw(st.sampled_from(["soft", "straight_through"])),
        hidden=8,
    )


@st.composite
def _per_layer(draw: st.DrawFn, config: Any, layer: st.SearchStrategy[int], keep: Any) -> Any:
    """A configuration with a number to keep for each of its layers."""
    layers = tuple(sorted(draw(st.lists(layer, min_size=1, max_size=3, unique=True))))
    return config(layers=layers, keep=tuple(draw(keep) for _ in layers))


CONFIGS: dict[str, st.SearchStrategy[MethodConfig]] = {
    "atp": _atp(),
    "divprune": st.builds(tp.DivPruneConfig, keep=_KEEP, layer=st.integers(-1, LAYERS - 2)),
    "downsample": st.builds(tp.DownsampleConfig, share=_SHARE),
    "fastv": st.builds(tp.FastVConfig, layer=_LAYER, keep=_KEEP),
    "idselection": st.builds(
        tp.IDSelectionConfig, layer=_LAYER, keep=_KEEP, gamma=st.sampled_from([1.0, 20.0])
    ),
    "matryoshka": st.builds(tp.MatryoshkaConfig, stride=st.integers(1, 6)),
    "prumerge": st.builds(
        tp.PruMergeConfig,
        plus=st.booleans(),
        keep=st.one_of(st.none(), _KEEP),
        neighbours=st.sampled_from([0, 3, 32]),
    ),
    "pyramiddrop": st.builds(
        tp.PyramidDropConfig, layers=_LAYERS, ratio=st.sampled_from([0.1, 0.5, 0.9])
    ),
    "random": _per_layer(
        tp.RandomConfig, st.integers(-1, LAYERS - 2), st.sampled_from([0, 4.5, 20, 99])
    ),
    "sparsevlm": st.one_of(
        st.builds(
            tp.SparseVLMConfig,
            layers=_LAYERS,
            scale=st.sampled_from([0.3, 1.0]),
            recycle=st.sampled_from([0.0, 0.3, 1.0]),
            clusters=st.sampled_from([0.1, 0.5]),
        ),
        _per_layer(tp.SparseVLMConfig, _LAYER, _KEEP),
    ),
    "uniform": st.builds(tp.UniformConfig, share=_SHARE, layer=st.integers(-1, LAYERS - 2)),
    "visionzip": st.builds(
        tp.VisionZipConfig, keep=_KEEP, contextual=st.sampled_from([0.0, 10 / 64, 0.6])
    ),
}


def every_config() -> st.SearchStrategy[MethodConfig]:
    """Of any method."""
    return st.sampled_from(sorted(CONFIGS)).flatmap(CONFIGS.__getitem__)


def merges(config: MethodConfig) -> bool:
    """Whether what a method drops goes into what it keeps before the first layer."""
    return config.method in ("downsample", "matryoshka", "prumerge", "visionzip")


def merges_between_layers(config: MethodConfig) -> bool:
    """Whether it does so after later layers, where the reference cannot follow."""
    return isinstance(config, tp.SparseVLMConfig) and config.recycle > 0
