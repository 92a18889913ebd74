"""Which tokens stay: written down in advance, so that everybody computes on the same ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenprune.engine import engine_of
from tokenprune.methods.base import Context, Selection

from .shapes import Shape

__all__ = ["COMPLEX", "SIMPLE", "Kept", "force", "kept_of"]

# The paper's counts after its three modules, of 576 (its visualisation).
COMPLEX, SIMPLE = (143, 109, 21), (106, 81, 19)


@dataclass(frozen=True)
class Kept:
    """The positions alive after each module: bool, (batch, length) each."""

    after: tuple[Tensor, ...]


def kept_of(shape: Shape, batch: int, device: str, ragged: bool) -> Kept:
    """The paper's counts, in proportion to the shape's tokens.

    Ragged rows go from the simple picture's counts to the complex one's in equal steps; otherwise
    all are the complex one's.
    """
    generator = torch.Generator().manual_seed(1)
    order = torch.rand(batch, shape.visual, generator=generator).argsort(dim=1).argsort(dim=1)
    share = torch.linspace(0, 1, batch)[:, None] if ragged else torch.ones(batch, 1)
    after = []
    for few, many in zip(SIMPLE, COMPLEX, strict=True):
        count = ((few + (many - few) * share) * shape.visual / 576).round()
        alive = torch.ones(batch, shape.length, dtype=torch.bool)
        alive[:, shape.before : shape.before + shape.visual] = order < count
        after.append(alive.to(device))
    return Kept(tuple(after))


def force(model: Any, kept: Kept) -> None:
    """Let a wrapped model decide as it does, and keep what is written down."""
    method: Any = engine_of(model).method
    decide = type(method).select

    def select(context: Context) -> Selection:
        selection = decide(method, context)
        keep = kept.after[context.module].gather(1, context.positions)
        return Selection(keep=keep, scores=selection.scores, thresholds=selection.thresholds)

    method.select = select
