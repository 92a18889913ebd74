"""What is timed: the unpruned model, the oracle, ATP, and the other methods of the engine."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import tokenprune as tp
from tokenprune.config import MethodConfig
from tokenprune.engine.passes import observed

from .kept import Kept, force
from .oracle import oracle
from .shapes import Shape
from .timing import Variant

__all__ = ["atp", "core", "features_once", "paused", "rivals"]


def core(model: Any, shape: Shape, kept: Kept) -> dict[str, Variant]:
    """List the unpruned model, the oracle, ATP, and ATP with scores from the full map."""
    return {
        "unpruned": nullcontext,
        "oracle": partial(oracle, model, shape, kept),
        "ATP": partial(atp, model, shape, kept),
        "ATP, full map": partial(full_map, model, shape, kept),
    }


@contextmanager
def atp(model: Any, shape: Shape, kept: Kept) -> Iterator[None]:
    """Wrap with ATP, which decides as always and keeps the tokens that `kept` prescribes."""
    tp.wrap(model, tp.ATPConfig(layers=shape.prune_after, target_tokens=shape.side**2 / 2))
    force(model, kept)
    try:
        yield
    finally:
        tp.unwrap(model)


@contextmanager
def paused(model: Any, shape: Shape, kept: Kept) -> Iterator[None]:
    """Wrap with ATP and pause it."""
    with atp(model, shape, kept), tp.paused(model):
        yield


@contextmanager
def full_map(model: Any, shape: Shape, kept: Kept) -> Iterator[None]:
    """Wrap with ATP whose scores come from the whole (heads, queries, keys) map."""
    with (
        atp(model, shape, kept),
        mock.patch.object(observed, "attention_received", received_by_map),
    ):
        yield


def received_by_map(
    query: Tensor, key: Tensor, weights: Tensor, mask: Tensor | None, scaling: float | None, *_: Any
) -> tuple[Tensor, Tensor]:
    """Compute attention received from the whole map, as transformers' eager attention does."""
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    logits = query @ key.transpose(2, 3) * (scaling or query.shape[-1] ** -0.5)
    queries, keys = logits.shape[2:]
    visible = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril(keys - queries)
    if mask is not None:
        visible = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    logits = logits.masked_fill(~visible, torch.finfo(logits.dtype).min)
    attention = logits.softmax(dim=-1, dtype=torch.float32).mean(dim=1)
    seen = visible.expand(len(query), 1, queries, keys)[:, 0].float()
    return weights @ attention, weights @ seen


@contextmanager
def rival(model: Any, config: MethodConfig) -> Iterator[None]:
    """Wrap with another method."""
    with ExitStack() as stack:
        stack.callback(tp.unwrap, tp.wrap(model, config))
        yield


def rivals(model: Any, shape: Shape, kept: Kept) -> dict[str, Variant]:
    """List the other methods, with the same mean of tokens over the layers where they can.

    None is forced: each decides by its own rule on random weights.
    """
    visual = slice(shape.before, shape.before + shape.visual)
    counts = [shape.visual, *(int(alive[:, visual].sum(1).max()) for alive in kept.after)]
    ends = (*shape.prune_after, shape.layers - 1)
    spans = [ends[0] + 1, *(b - a for a, b in itertools.pairwise(ends))]
    mean = sum(n * count for n, count in zip(spans, counts, strict=True)) / shape.layers
    once = (shape.layers * mean - 2 * shape.visual) / (shape.layers - 2)
    configs = {
        "FastV": tp.FastVConfig(layer=1, keep=round(once)),
        "ID-Selection": tp.IDSelectionConfig(layer=1, keep=round(once)),
        "PyramidDrop": tp.PyramidDropConfig(),
        "SparseVLM": tp.SparseVLMConfig(),
        "DivPrune": tp.DivPruneConfig(keep=round(mean)),
        "PruMerge+": tp.PruMergeConfig(keep=round(mean), plus=True),
        "VisionZip": tp.VisionZipConfig(keep=round(mean)),
        "random, before the decoder": tp.RandomConfig(layers=(-1,), mean_tokens=mean),
    }
    return {name: partial(rival, model, config) for name, config in configs.items()}


@contextmanager
def features_once(model: Any, batch: dict[str, Tensor]) -> Iterator[None]:
    """Compute the vision tower's features now, so that the tower does not run inside."""
    with torch.inference_mode():
        features = model.model.get_image_features(pixel_values=batch["pixel_values"])
    with mock.patch.object(model.model, "get_image_features", return_value=features):
        yield
