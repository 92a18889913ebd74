"""Which tokens stay: prescribed, so that every variant computes on the same ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import tokenprune as tp

from .shapes import Shape

__all__ = ["COMPLEX", "SIMPLE", "Forced", "Kept", "force", "kept_of"]

# The paper's counts after its three pruning steps, of 576 (its visualisation).
COMPLEX, SIMPLE = (143, 109, 21), (106, 81, 19)


@dataclass(frozen=True)
class Kept:
    """Positions that stay after each pruning step: bool, (batch, length) each."""

    after: tuple[Tensor, ...]


def kept_of(shape: Shape, batch: int, device: str, ragged: bool) -> Kept:
    """Draw tokens by the paper's counts, in proportion to the shape's tokens.

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


class Forced(tp.Method):
    """Decide as another method does, and keep the tokens that are prescribed.

    Parameters
    ----------
    method : Method
        The one that decides. Its time is measured and its selection is not used.
    kept : Kept
    """

    def __init__(self, method: tp.Method, kept: Kept) -> None:
        super().__init__()
        self.method, self.kept = method, kept
        self.layers, self.needs = method.layers, method.needs

    def begin(self, context: tp.Context) -> Any:
        """Begin as the method does."""
        return self.method.begin(context)

    def select(self, context: tp.Context) -> tp.Selection:
        """Keep the prescribed tokens."""
        selection = self.method.select(context)
        keep = self.kept.after[context.step].gather(1, context.positions)
        return replace(selection, keep=keep)


def force(model: Any, kept: Kept) -> None:
    """Let a wrapped model decide as before, and keep the prescribed tokens."""
    method = model.tokenprune.method
    tp.wrap(tp.unwrap(model), Forced(method, kept))
