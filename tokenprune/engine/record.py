"""What a forward pass did, kept on the device until somebody asks for it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..layout import VisualLayout
from .survivors import Survivors

__all__ = ["Decision", "Record"]


@dataclass(frozen=True)
class Decision:
    """What one pruning step decided.

    Attributes
    ----------
    layer : int
        The decoder layer it follows.
    kept : Survivors or bool Tensor (batch, length), optional
        The tokens that the next layer computes on. None: the step dropped nothing.
    thresholds : float32, (batch, n), optional
    """

    layer: int
    kept: Survivors | Tensor | None
    thresholds: Tensor | None

    def alive(self, before: Tensor) -> Tensor:
        """Return which positions are alive after it: bool, (batch, length), as `before` is."""
        if self.kept is None:
            return before
        if isinstance(self.kept, Tensor):
            return self.kept
        return self.kept.marks(before)


@dataclass(frozen=True)
class Record:
    """One pass with visual tokens.

    Attributes
    ----------
    layout : VisualLayout, (batch, length)
    present : bool, (batch, length), optional
        False at padding. None: there is none.
    decisions : tuple of Decision
    num_layers : int
    """

    layout: VisualLayout
    present: Tensor | None
    decisions: tuple[Decision, ...]
    num_layers: int

    def alive(self) -> Tensor:
        """Return the positions, without padding, of each layer: bool, (layers, batch, length)."""
        present = self.present
        if present is None:
            present = torch.ones_like(self.layout.mask)
        now = present
        layers = []
        decisions = {d.layer: d for d in self.decisions}
        for layer in range(-1, self.num_layers):
            layers.append(now)
            if layer in decisions:
                now = decisions[layer].alive(now) & present
        return torch.stack(layers[1:])
