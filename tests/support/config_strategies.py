"""Configurations of every registered method, for the sweeps, by the fields that they have.

A method that is registered is swept: with its default configuration, and with drawn layers and
budgets. What a method has beside these is drawn where `OPTIONS` says how.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

import tokenprune as tp
from tokenprune.config import MethodConfig
from tokenprune.fields import BEFORE_DECODER
from tokenprune.methods import METHODS

from .strategies import LAYERS
from .tiny_llava import IMAGE, make_batch, tiny_llava

__all__ = [
    "drawn_configs",
    "every_config",
    "fixed_configs",
    "has_tower_needs",
    "layered_configs",
    "merges",
    "merges_between_layers",
    "register_from",
    "swept_methods",
]

# Methods from the files that ``--method-file`` names: the sweeps then are over these alone.
_ONLY: set[str] = set()

_KEEP = st.sampled_from([1, 5, 12, 50, 0.1, 0.4, 0.9, 1.0])
_LAST = LAYERS - 2

# As a user would ask for it on a model of `LAYERS` layers and 36 tokens an image. Others: as their
# configuration is by default.
FIXED: dict[str, tuple[MethodConfig, ...]] = {
    "atp": (tp.ATPConfig(layers=(0, 2), target_tokens=20),),
    "cdpruner": (
        tp.CDPrunerConfig(keep=9),
        tp.CDPrunerConfig(keep=0.3, layer=1, negated=False, theta=0.5),
    ),
    "dart": (tp.DARTConfig(layer=0, keep=9), tp.DARTConfig(keep=0.4, text_pivots=0)),
    "divprune": (tp.DivPruneConfig(keep=9), tp.DivPruneConfig(keep=0.3, layer=1)),
    "downsample": (tp.DownsampleConfig(keep=0.3), tp.DownsampleConfig(keep=9)),
    "fastv": (tp.FastVConfig(layer=1, keep=9), tp.FastVConfig(layer=0, keep=0.3)),
    "idselection": (tp.IDSelectionConfig(layer=0, keep=9),),
    "matryoshka": (tp.MatryoshkaConfig(stride=4),),
    "prumerge": (
        tp.PruMergeConfig(),
        # Without a budget most stand out of a tower at random, and all tokens stay.
        tp.PruMergeConfig(plus=True, keep=0.4),
        tp.PruMergeConfig(plus=True, keep=12, neighbours=3),
    ),
    "random": (tp.RandomConfig(layers=(-1, 1), mean_tokens=(20, 4.5)), tp.RandomConfig()),
    "sparsevlm": (tp.SparseVLMConfig(), tp.SparseVLMConfig(layers=(0, 2), keep=(20, 0.4))),
    "uniform": (
        tp.UniformConfig(keep=0.3),
        tp.UniformConfig(keep=12),
        tp.UniformConfig(layer=2),
    ),
    "visionzip": (tp.VisionZipConfig(keep=12),),
}

# How other fields than `layer`, `layers` and `keep` are drawn.
OPTIONS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "cdpruner": {
        "negated": st.booleans(),
        "theta": st.sampled_from([None, 0.0, 0.5, 0.95]),
    },
    "dart": {
        "image_pivots": st.sampled_from([1, 4, 100]),
        "text_pivots": st.sampled_from([0, 3]),
    },
    "idselection": {"gamma": st.sampled_from([1.0, 20.0])},
    "matryoshka": {"stride": st.integers(1, 6)},
    "prumerge": {
        "plus": st.booleans(),
        "keep": st.one_of(st.none(), _KEEP),
        "neighbours": st.sampled_from([0, 3, 32]),
    },
    "sparsevlm": {
        "scale": st.sampled_from([0.3, 1.0]),
        "recycle": st.sampled_from([0.0, 0.3, 1.0]),
        "clusters": st.sampled_from([0.1, 0.5]),
    },
    "visionzip": {"contextual": st.sampled_from([0.0, 10 / 64, 0.6])},
}


def register_from(files: Iterable[Path]) -> None:
    """Import files that register methods, and sweep over these methods alone."""
    before = set(METHODS)
    for number, path in enumerate(files):
        spec = spec_from_file_location(f"method_file_{number}", path)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[spec.name] = module_from_spec(spec)  # pickle looks it up
        spec.loader.exec_module(module)
    _ONLY.update(METHODS.keys() - before)


def swept_methods() -> list[str]:
    """Return the names of the registered methods that the sweeps are over."""
    return sorted(_ONLY or METHODS)


def fixed_configs(name: str) -> tuple[MethodConfig, ...]:
    """Return some configurations of a registered method."""
    return FIXED.get(name) or (METHODS[name][0](),)


def drawn_configs(name: str) -> st.SearchStrategy[MethodConfig]:
    """Draw configurations of a registered method."""
    if name == "atp":
        return _atp()
    return _by_fields(METHODS[name][0], OPTIONS.get(name, {}))


def every_config() -> st.SearchStrategy[MethodConfig]:
    """Draw a configuration of any registered method."""
    return st.sampled_from(swept_methods()).flatmap(drawn_configs)


def layered_configs(first: int, target: float) -> tuple[MethodConfig, ...]:
    """Return configurations of every registered method with tokens dropped from a layer on.

    Those that drop before the decoder by default do it there. Random draws are left out: a row of a
    batch is given other numbers than that row alone.

    Parameters
    ----------
    first : int
    target : float
        Mean tokens for ATP.
    """
    special: dict[str, dict[str, Any]] = {
        "atp": {"target_tokens": target, "revival": True, "text_threshold": 0.5},
    }
    found: list[MethodConfig] = []
    for name in swept_methods():
        if name == "random":
            continue
        default = {f.name: f.default for f in dataclasses.fields(METHODS[name][0])}
        options = dict(special.get(name, {}))
        if "layers" in default:
            options["layers"] = (first, first + 1)
        if default.get("layer", BEFORE_DECODER) != BEFORE_DECODER:
            options["layer"] = first
        if default.get("keep") is not None:
            options["keep"] = 0.4
        found.append(METHODS[name][0](**options))
        if name == "prumerge":
            found.append(tp.PruMergeConfig(plus=True, keep=0.4))
    return tuple(found)


def has_tower_needs(config: MethodConfig) -> bool:
    """Whether the method reads the vision tower."""
    return METHODS[config.method][1].tower_layer is not None


def merges(config: MethodConfig) -> bool:
    """Whether what a method drops goes into what it keeps before the first layer."""
    return BEFORE_DECODER in _merging_layers(config)


def merges_between_layers(config: MethodConfig) -> bool:
    """Whether it does so after later layers, where the reference cannot follow."""
    return any(layer != BEFORE_DECODER for layer in _merging_layers(config))


# -- how they are made -----------------------------------------------------------------------------


class _Recording(tp.Method):
    """Select as another method does, and note the layers where it changes hidden states."""

    def __init__(self, method: Any) -> None:
        super().__init__()
        self.method, self.merging = method, set()
        self.layers, self.needs = method.layers, method.needs
        self.tower_layer, self.revives = method.tower_layer, method.revives
        self.spared_ids, self.looks_ahead = method.spared_ids, method.looks_ahead

    def begin(self, context: tp.Context) -> Any:
        return self.method.begin(context)

    def select(self, context: tp.Context) -> tp.Selection:
        selection = self.method.select(context)
        if selection.hidden_states is not None:
            self.merging.add(context.layer)
        return selection


@cache
def _probe() -> Any:
    return tiny_llava(layers=LAYERS)


@cache
def _merging_layers(config: MethodConfig) -> frozenset[int]:
    """The layers after which a method changes hidden states."""
    model = _probe()
    with torch.random.fork_rng(), torch.no_grad():
        method = tp.wrap(model, config).tokenprune.method
        recording = _Recording(method)
        tp.wrap(tp.unwrap(model), recording)
        model(**make_batch([(4, IMAGE, 3)]))
        tp.unwrap(model)
    return frozenset(recording.merging)


def _layers(least: int) -> st.SearchStrategy[tuple[int, ...]]:
    drawn = st.lists(st.integers(least, _LAST), min_size=1, max_size=3, unique=True)
    return drawn.map(sorted).map(tuple)


@st.composite
def _by_fields(
    draw: st.DrawFn, config: type[MethodConfig], options: dict[str, st.SearchStrategy[Any]]
) -> MethodConfig:
    """A configuration with the layers and budgets that its fields allow."""
    checks = {f.name: f.metadata.get("check") for f in dataclasses.fields(config)}
    default = {f.name: f.default for f in dataclasses.fields(config)}
    drawn = {name: draw(strategy) for name, strategy in options.items()}
    if checks.get("layer"):
        least = BEFORE_DECODER if checks["layer"].allows(BEFORE_DECODER) else 0
        drawn["layer"] = draw(st.integers(least, _LAST))
    if checks.get("layers"):
        least = BEFORE_DECODER if checks["layers"].allows((BEFORE_DECODER,)) else 0
        drawn["layers"] = draw(_layers(least))
    if checks.get("keep") and "keep" not in drawn:
        drawn["keep"] = draw(_budgets(len(drawn.get("layers", ()))))
        if checks["keep"].allows(0):
            drawn["keep"] = draw(st.sampled_from([0, drawn["keep"]]))
        if default["keep"] is None:
            drawn["keep"] = draw(st.sampled_from([None, drawn["keep"]]))
    if "mean_tokens" in checks and draw(st.booleans()):
        each = st.sampled_from([0, 4.5, 20, 99])
        drawn["mean_tokens"] = tuple(draw(each) for _ in drawn["layers"])
    return config(**drawn)


def _budgets(layers: int) -> st.SearchStrategy[Any]:
    """One budget, or where there are several layers one for each."""
    return st.one_of(_KEEP, st.tuples(*[_KEEP] * layers)) if layers else _KEEP


@st.composite
def _atp(draw: st.DrawFn) -> tp.ATPConfig:
    layers = draw(_layers(0))
    return tp.ATPConfig(
        layers=layers,
        # Above what the layers up to the first step cost.
        target_tokens=36 * (layers[0] + 1) / LAYERS + 3,
        normalisation=draw(st.sampled_from(["share", "mass", "minmax", "none"])),
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
        heads_read=draw(st.sampled_from(["share", "raw"])),
        activation=draw(st.sampled_from(["gelu", "none"])),
        hidden=8,
    )
