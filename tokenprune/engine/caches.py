"""Which key-value caches can hold layers of different lengths."""

from __future__ import annotations

from typing import Any

from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

__all__ = ["check_supported", "without_windows"]


def without_windows(cache: Any) -> None:
    """Let an empty cache keep all keys of layers with a sliding window.

    Such a layer would keep its newest keys by their number. Once tokens are dropped the window must
    be counted by their positions, which the masks do.
    """
    layers = getattr(cache, "layers", None) or []
    for n, layer in enumerate(layers):
        if type(layer) is DynamicSlidingWindowLayer:
            layers[n] = DynamicLayer()


def check_supported(cache: Any, num_layers: int) -> None:
    """Refuse a cache whose layers cannot differ in length.

    Raises
    ------
    ValueError
        Names the cache and says what to use.
    """
    layers = getattr(cache, "layers", None)
    if layers is None:
        kinds = {type(cache)}
    else:
        kinds = {type(layer) for layer in layers[:num_layers]}
        if len(layers) < num_layers and cache.layer_class_to_replicate is not None:
            kinds.add(cache.layer_class_to_replicate)
    bad = sorted(kind.__name__ for kind in kinds if kind is not DynamicLayer)
    if bad or getattr(cache, "offloading", False):
        what = " with layers " + ", ".join(bad) if bad else " with offloading"
        raise ValueError(
            f"{type(cache).__name__}{what} cannot hold a different number of keys per layer: "
            "expected transformers.DynamicCache() with plain layers. Leave cache_implementation "
            "out, or run this prompt inside tokenprune.paused(model)."
        )
