"""The training pass: tokens are not dropped, they count less by a soft mask with a gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...methods.context import Selection, Trace
from .. import recompute
from ..record import Decision
from ..vision_tower import TowerAttention
from .deciding import DecidingPass
from .facts import PassFacts
from .layer_inputs import SoftenedInputs
from .observed import LayerAttention
from .stage import Stage

__all__ = ["SoftenedPass"]


class SoftenedPass(DecidingPass):
    """Soften the tokens that a trainable method would drop (arXiv 2412.00447, its training mask).

    Parameters are those of `DecidingPass`.
    """

    def __init__(self, facts: PassFacts, first: Stage, patches: Tensor | None) -> None:
        super().__init__(facts, SoftenedInputs(facts), first, patches)
        self._weight = first.layout.mask.float()
        self._alive = torch.ones_like(first.layout.mask)
        self._counts: list[Tensor] = []
        self._given: Any = None
        # Decoder layer → its mask, for a checkpoint that runs the layer again.
        self._masks: dict[int, Tensor] = {}

    def begin(
        self, layer: nn.Module, kwargs: dict[str, Any], hidden: Tensor, tower: TowerAttention | None
    ) -> Tensor:
        """See `Pass.begin`."""
        recompute.check(layer, self.facts.backend)
        recompute.remember(self._masks, kwargs)
        return super().begin(layer, kwargs, hidden, tower)

    def before_layer(self, layer: int, module: nn.Module, kwargs: dict[str, Any]) -> dict[str, Any]:
        """See `Pass.before_layer`."""
        self._given = kwargs.get("attention_mask")
        adapted = super().before_layer(layer, module, kwargs)
        if adapted is not kwargs:
            self._masks[layer] = adapted["attention_mask"]
        return adapted

    def observe(self, layer: int, attention: LayerAttention) -> None:
        """See `Pass.observe`."""
        super().observe(layer, self.departure.softened_attention(attention, self._given))

    def query_weight(self) -> Tensor:
        """Return the factor of each visual token."""
        return self._weight

    def shown_weight(self, candidates: Stage) -> Tensor:
        """Return the factor of each visual token, or 1 where tokens may return."""
        return self.departure.weight(candidates, self._weight)

    def apply(
        self, layer: int, candidates: Stage, selection: Selection, states: Tensor, hidden: Tensor
    ) -> Tensor:
        """Soften the tokens for the layers to come; hidden states stay as they are."""
        visual = self.first.layout.mask
        if selection.mask is None:
            raise TypeError(
                f"{type(self.facts.method).__name__}.trainable is True, but its selection has no "
                "soft mask to train by: return Selection(keep=…, mask=…), or leave trainable False."
            )
        # Out of place: earlier masks are in the graph.
        mask = torch.where(visual, selection.mask, 0.0)
        self._weight = self.departure.softened(self._weight, mask)
        factor = torch.where(visual, self._weight, 1.0)
        self.inputs = SoftenedInputs(self.facts, factor)
        self._counts.append(self._weight.sum(dim=1))
        self._alive = self.departure.alive(self._alive, selection.keep | ~visual)
        self.decisions.append(Decision(layer, self._alive, selection.thresholds))
        return hidden

    def trace(self) -> Trace | None:
        """Return what the pass counted, with gradient. None: no step was reached."""
        if not self._counts:
            return None
        return Trace(
            self.first.layout.counts().float(),
            torch.stack(self._counts),
            self.facts.method.layers,
            self.facts.num_layers,
        )
