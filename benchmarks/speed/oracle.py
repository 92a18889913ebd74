"""The best possible: the same layers on the same tokens, known in advance.

No score, no threshold, no decision, no wait for the device, no mask: hidden states and position
embeddings are picked by indices made before the clock starts. What it does not save either is the
longest row: shorter ones are padded at their end, as in the engine.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .kept import Kept
from .shapes import Shape

__all__ = ["oracle"]


@contextmanager
def oracle(model: Any, shape: Shape, kept: Kept) -> Iterator[None]:
    """Drop the tokens that `kept` prescribes from the unwrapped model, without deciding."""
    layers = model.model.language_model.layers
    stages: dict[int, Tensor] = {}
    before = torch.ones_like(kept.after[0])
    picks = []
    for layer, alive in zip(shape.prune_after, kept.after, strict=True):
        slots = int(alive.sum(dim=1).max())
        positions = (~alive).byte().argsort(dim=1, stable=True)[:, :slots]
        # Within the stage before, where each of them stands.
        within = (before.long().cumsum(dim=1) - 1).gather(1, positions)
        picks.append((layer, within.clamp(min=0)))
        for later in range(layer + 1, shape.layers):
            stages[later] = positions
        before = alive
    embeddings: dict[int, Any] = {}
    handles = []

    def drop(index: Tensor) -> Any:
        def hook(_: Any, args: Any, output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            if hidden.shape[1] == 1:
                return output  # a decoding step
            picked = hidden.gather(1, index[..., None].expand(-1, -1, hidden.shape[-1]))
            return (picked, *output[1:]) if isinstance(output, tuple) else picked

        return hook

    def embed(layer: int) -> Any:
        def hook(_: Any, args: Any, kwargs: Any) -> Any:
            if kwargs["position_ids"].shape[-1] == 1:
                return args, kwargs  # a decoding step
            index = stages[layer]
            key = id(index)
            if layer - 1 in shape.prune_after or key not in embeddings:
                cos, sin = kwargs["position_embeddings"]
                wide = index[..., None].expand(-1, -1, cos.shape[-1])
                embeddings[key] = tuple(
                    part.expand(index.shape[0], -1, -1).gather(1, wide) for part in (cos, sin)
                )
            kwargs = {**kwargs, "attention_mask": None, "position_embeddings": embeddings[key]}
            kwargs["position_ids"] = index
            return args, kwargs

        return hook

    for layer, index in picks:
        handles.append(layers[layer].register_forward_hook(drop(index)))
    for layer in stages:
        handles.append(layers[layer].register_forward_pre_hook(embed(layer), with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
