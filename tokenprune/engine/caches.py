"""Key-value caches: which can hold layers of different lengths, and what each layer then holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from .cached_positions import CachedPositions
from .survivors import Survivors, scatter_hidden

__all__ = [
    "PrunedLayer",
    "allow_cropping",
    "check_lengths",
    "check_supported",
    "forget",
    "is_pruned",
    "keys_of",
    "load",
    "store",
    "widen_first_layer",
    "without_windows",
]


class PrunedLayer(DynamicLayer):
    """A cache layer that lacks the keys of dropped tokens, and knows which positions it has.

    What is known lives on the layer, so it lives as long as the keys do, follows a deep copy, and
    is re-ordered with them: beams, repeated rows and selected rows stay right. A cropped layer is
    noticed by `check_lengths`.

    Attributes
    ----------
    held : CachedPositions, optional
        The keys it has. None: all.
    """

    held: CachedPositions | None = None

    @classmethod
    def of(cls, layer: DynamicLayer | None) -> PrunedLayer:
        """Return a layer with the same keys."""
        pruned = cls()
        if layer is not None:
            vars(pruned).update(vars(layer))
        return pruned

    def reorder_cache(self, beam_idx: Any) -> None:
        """Take other rows of the batch, as beam search does."""
        super().reorder_cache(beam_idx)
        self._follow("reorder", beam_idx, lambda part: part[beam_idx.to(part.device)])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row so many times."""
        super().batch_repeat_interleave(repeats)
        self._follow("repeat", repeats, lambda part: part.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows."""
        super().batch_select_indices(indices)
        self._follow("select", indices, lambda part: part[indices])

    def reset(self) -> None:
        """Empty the layer."""
        super().reset()
        self.held = None

    def _follow(self, name: str, argument: Any, take: Callable[[Tensor], Tensor]) -> None:
        if self.held is not None:
            self.held = self.held.rows(name, argument, take)


def load(cache: Any, past: int) -> dict[int, CachedPositions]:
    """Return what is known of a cache: decoder layer → its keys. A layer not named has them all."""
    if cache is None or past == 0:  # emptied, and about to be filled again
        return {}
    layers = enumerate(getattr(cache, "layers", ()))
    return {n: layer.held for n, layer in layers if getattr(layer, "held", None) is not None}


def is_pruned(cache: Any) -> bool:
    """Return whether a layer of a cache lacks the keys of dropped tokens; None: no cache."""
    return any(getattr(layer, "held", None) is not None for layer in getattr(cache, "layers", ()))


def store(cache: Any, keys: Mapping[int, CachedPositions]) -> None:
    """Note on the layers of a cache what each holds."""
    for n, held in keys.items():
        while len(cache.layers) <= n:
            cache.layers.append(cache.layer_class_to_replicate())
        if not isinstance(cache.layers[n], PrunedLayer):
            cache.layers[n] = PrunedLayer.of(cache.layers[n])
        cache.layers[n].held = held


def allow_cropping(cache: Any, count: int) -> None:
    """Let the last `count` tokens of a pass over one row be cropped off, as none of them is gone.

    Assisted decoding crops the candidates that turned out wrong.
    """
    made: dict[int, CachedPositions] = {}
    for layer in getattr(cache, "layers", ()):
        if isinstance(layer, PrunedLayer) and layer.held is not None:
            if id(layer.held) not in made:
                made[id(layer.held)] = layer.held.without_last(count)
            layer.held = made[id(layer.held)]


def keys_of(cache: Any, layer: int, past: int) -> list[Tensor]:
    """Return the keys of earlier turns in a layer: one tensor, or none where it has none.

    Parameters
    ----------
    cache : Cache, optional
    layer : int
    past : int
        Positions seen so far.

    Returns
    -------
    list of (batch, heads, keys, head_dim)
    """
    return [cache.layers[layer].keys] if cache is not None and past else []


def forget(cache: Any) -> None:
    """Remove what is known of a cache: it was emptied."""
    for layer in getattr(cache, "layers", ()):
        if isinstance(layer, PrunedLayer):
            layer.held = None


def check_lengths(cache: Any, keys: Mapping[int, CachedPositions], past: int, batch: int) -> None:
    """See that a cache is what pruning left, or was never pruned.

    Raises
    ------
    RuntimeError
        If a layer's length or batch is not what is known of its keys.
    """
    for number, layer in enumerate(getattr(cache, "layers", ())):
        held = keys.get(number)
        if type(layer) not in (DynamicLayer, PrunedLayer) or not (length := layer.get_seq_length()):
            continue
        expected, rows = past, layer.keys.shape[0]
        if held is not None:
            expected = held.kept.index.shape[1] + max(past - held.origin, 0)
            rows = held.kept.index.shape[0]
        # Cropped into what was pruned, nobody knows which of the kept positions are left.
        if length != expected or rows != batch or (held is not None and past < held.origin):
            raise RuntimeError(
                f"The key-value cache of layer {number} holds {length} positions for a batch of "
                f"{batch}, but {expected} for a batch of {rows} were expected: the cache was "
                "cropped into the pruned prompt, or filled from another cache's tensors, by "
                "something that does not know that its layers differ in length. Crop no more than "
                "the words that came after the prompt, and copy a cache with copy.deepcopy; or run "
                "this prompt inside tokenprune.paused(model)."
            )


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
        if len(layers) < num_layers:
            kinds.add(getattr(cache, "layer_class_to_replicate", None) or type(cache))
    bad = sorted(kind.__name__ for kind in kinds - {DynamicLayer, PrunedLayer})
    if bad or getattr(cache, "offloading", False):
        what = " with layers " + ", ".join(bad) if bad else " with offloading"
        raise ValueError(
            f"{type(cache).__name__}{what} cannot hold a different number of keys per layer: "
            "expected transformers.DynamicCache() with plain layers. Leave cache_implementation "
            "out, or run this prompt inside tokenprune.paused(model)."
        )


def without_windows(cache: Any) -> None:
    """Let an empty cache keep all keys of layers with a sliding window.

    Such a layer would keep its newest keys by their number. Once tokens are dropped the window must
    be counted by their positions, which the masks do.
    """
    layers = getattr(cache, "layers", None) or []
    for n, layer in enumerate(layers):
        if type(layer) is DynamicSlidingWindowLayer:
            layers[n] = DynamicLayer()


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
