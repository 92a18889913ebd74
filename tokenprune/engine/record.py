"""What a forward pass did, kept on the device until somebody asks for it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..layout import VisualLayout
from ..methods.context import Context, Criterion, Received, Selection
from .survivors import Survivors

__all__ = ["Basis", "Decision", "Record"]


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
class Basis:
    """What one pruning step decided by: tensors that it made anyway, so keeping them costs nothing.

    A token here is one of those that the step decided among.

    Attributes
    ----------
    positions : int64, (batch, tokens)
        Index of each token in the sequence as it was given.
    among : bool, (batch, tokens)
        The visual tokens.
    criteria : tuple of Criterion
    max_kept : int, optional
        See `Selection.max_kept`.
    received : dict
        Name of a query group → the attention that each token received from it at the layer.
    """

    positions: Tensor
    among: Tensor
    criteria: tuple[Criterion, ...]
    max_kept: int | None
    received: dict[str, Received]

    @classmethod
    def of(cls, context: Context, selection: Selection) -> Basis:
        """Keep what explains a step.

        A selection without criteria is explained by its scores, if it has any, and its result.
        """
        criteria = selection.criteria
        if not criteria:
            criteria = (Criterion("the method's own rule", selection.scores, met=selection.keep),)
        return cls(
            positions=context.positions,
            among=context.layout.mask,
            criteria=tuple(_detached(criterion) for criterion in criteria),
            max_kept=selection.max_kept,
            # That of each text token on its own is as large as a layer's attention map.
            received={name: r for name, r in context.received.items() if name != "each"},
        )


def _detached(criterion: Criterion) -> Criterion:
    """Let go of the graph, which would otherwise live until the next pass."""
    values = vars(criterion).items()
    tensors: dict[str, Any] = {n: v.detach() for n, v in values if isinstance(v, Tensor)}
    return replace(criterion, **tensors)


@dataclass(frozen=True)
class Record:
    """One pass with visual tokens.

    Attributes
    ----------
    layout : VisualLayout, (batch, length)
    present : bool, (batch, length), optional
        False at padding. None: there is none.
    decisions : tuple of Decision
    bases : tuple of Basis
        One for each decision.
    num_layers : int
    method : str
        Name of the method's class.
    revives : bool
        Whether each step decided about the tokens that were gone too.
    """

    layout: VisualLayout
    present: Tensor | None
    decisions: tuple[Decision, ...]
    bases: tuple[Basis, ...]
    num_layers: int
    method: str
    revives: bool

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
