"""Which key-value caches can hold layers of different lengths."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from .compact import Survivors, scatter_hidden

__all__ = ["check_supported", "widen_first_layer", "without_windows"]


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


def widen_first_layer(cache: Any, kept: Survivors, length: int) -> None:
    """Lay the newest keys and values of the first layer out at full length, zeros between.

    Parameters
    ----------
    cache : DynamicCache
        Its first layer ends with the survivors of this pass.
    kept : Survivors
    length : int
        Of this pass before anything was dropped.
    """
    layer = cache.layers[0]
    new = kept.index.shape[1]

    def widened(states: Tensor) -> Tensor:
        heads = states.shape[1]
        old = states[:, :, : states.shape[2] - new]
        flat = rearrange(states[:, :, old.shape[2] :], "b h s d -> b s (h d)")
        full = scatter_hidden(flat, kept, length)
        return torch.cat([old, rearrange(full, "b s (h d) -> b h s d", h=heads)], dim=2)

    layer.keys, layer.values = widened(layer.keys), widened(layer.values)
