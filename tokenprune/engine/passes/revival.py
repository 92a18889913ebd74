"""What becomes of dropped tokens: gone for good, or asked about again at every later step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from ...methods.base import Method
from ..survivors import Survivors, gather_hidden, scatter_hidden, survivors
from .ahead import Ahead
from .layer_inputs import LayerInputs
from .observed import LayerAttention
from .stage import Stage

__all__ = ["Departure", "GoneForGood", "MayReturn", "departure_of"]


class GoneForGood:
    """The usual rule: a step decides among the tokens that are left.

    Parameters
    ----------
    first : Stage
        The pass's first stage.
    ahead : Ahead
        Runs layers up to their attention.
    """

    def __init__(self, first: Stage, ahead: Ahead) -> None:
        self.first = first
        self.ahead = ahead

    # -- tokens are really dropped -------------------------------------------------------------

    def before_layer(
        self, layer: int, module: nn.Module, kwargs: dict[str, Any], inputs: LayerInputs
    ) -> None:
        """Prepare for a layer whose attention the method asks for."""

    def with_returning(self, attention: LayerAttention) -> tuple[LayerAttention, int]:
        """Return an attention with the keys of tokens that may return, and how many they are."""
        return attention, 0

    def at_full_length(self, values: Tensor, stage: Stage) -> Tensor:
        """Return values of the observed tokens as the method sees them: (batch, groups, tokens)."""
        return values

    def candidates(self, stage: Stage, hidden: Tensor) -> tuple[Stage, Tensor]:
        """Return the tokens that a step decides among, and their hidden states."""
        return stage, hidden

    def count(self, alive: Tensor, visual: Tensor) -> dict[str, Tensor]:
        """Return counts of each row that `note` needs on the host."""
        return {}

    def note(self, alive: Tensor, visual: Tensor, states: Tensor, counts: dict[str, Any]) -> None:
        """Note what a step dropped, and the hidden states that it left with."""

    # -- tokens are softened -------------------------------------------------------------------

    def weight(self, stage: Stage, weight: Tensor) -> Tensor:
        """Return how much of each visual token `Context.weight` shows to be there."""
        return weight

    def softened(self, weight: Tensor, mask: Tensor) -> Tensor:
        """Return the weights after a step, by those before it and its soft mask."""
        return weight * mask

    def alive(self, before: Tensor, now: Tensor) -> Tensor:
        """Return which tokens are there after a step, by those before it and its decision."""
        return before & now

    def softened_attention(self, attention: LayerAttention, given: Any) -> LayerAttention:
        """Return the attention that a softened step observes.

        Parameters
        ----------
        attention : LayerAttention
            As it was, under the softened mask.
        given : object
            The mask that the layer would have been given without softening.
        """
        return attention


@dataclass(frozen=True)
class Departure:
    """The visual tokens that are gone and may return.

    Attributes
    ----------
    gone : Survivors, optional
        Their positions. None: all have returned.
    states : Tensor, (batch, length, width)
        At their positions, the hidden states that they left with.
    """

    gone: Survivors | None
    states: Tensor


class MayReturn(GoneForGood):
    """Every step decides among all visual tokens (`Method.revives`).

    A token that is gone has the hidden state it left with, and the attention it would receive if
    its key were there.
    """

    def __init__(self, first: Stage, ahead: Ahead) -> None:
        super().__init__(first, ahead)
        self._departed: Departure | None = None
        # Of the layer that runs now: the keys that tokens that are gone would have, and who would
        # see them.
        self._returning: tuple[Tensor, Tensor] | None = None

    def before_layer(
        self, layer: int, module: nn.Module, kwargs: dict[str, Any], inputs: LayerInputs
    ) -> None:
        """Make the keys that tokens that are gone would have in this layer."""
        self._returning = None
        departed = self._departed
        if departed is None or departed.gone is None:
            return
        given = {**kwargs, **inputs.positions(kwargs, departed.gone), "attention_mask": None}
        states = gather_hidden(departed.states, departed.gone.index)
        key = self.ahead.attention(module.forward, states, given).key
        mask = inputs.mask_with(kwargs.get("attention_mask"), layer, departed.gone)
        self._returning = key, mask

    def with_returning(self, attention: LayerAttention) -> tuple[LayerAttention, int]:
        """Append the keys of tokens that are gone."""
        if self._returning is None:
            return attention, 0
        keys, mask = self._returning
        key = torch.cat([attention.key, keys], dim=2)
        return replace(attention, key=key, mask=mask, lse=None), keys.shape[2]

    def at_full_length(self, values: Tensor, stage: Stage) -> Tensor:
        """Scatter values of the tokens here and then of those gone to all positions."""
        if self._departed is None or stage.kept is None:
            return values
        gone = self._departed.gone
        observed = stage.kept if gone is None else stage.kept.concatenated(gone)
        length = self.first.layout.mask.shape[1]
        full = scatter_hidden(rearrange(values, "b n t -> b t n"), observed, length)
        return rearrange(full, "b t n -> b n t")

    def candidates(self, stage: Stage, hidden: Tensor) -> tuple[Stage, Tensor]:
        """Return all visual tokens and the text that is left."""
        if self._departed is None or stage.kept is None:
            return stage, hidden
        first = self.first
        here = stage.kept.marks(first.layout.mask)
        states = scatter_hidden(hidden, stage.kept, here.shape[1])
        states = torch.where(here[..., None], states, self._departed.states)
        present = here | first.layout.mask
        again = replace(first, present=present, prompt=first.prompt & here, text=first.text & here)
        return again, states

    def count(self, alive: Tensor, visual: Tensor) -> dict[str, Tensor]:
        """Count the visual tokens that are gone after a step."""
        return {"gone": (visual & ~alive).sum(dim=1)}

    def note(self, alive: Tensor, visual: Tensor, states: Tensor, counts: dict[str, Any]) -> None:
        """See `GoneForGood.note`."""
        fewest, most = counts["gone"]
        left = survivors(visual & ~alive, most, most != fewest) if most else None
        self._departed = Departure(left, states)

    def weight(self, stage: Stage, weight: Tensor) -> Tensor:
        """Return 1 at every visual token."""
        return stage.layout.mask.float()

    def softened(self, weight: Tensor, mask: Tensor) -> Tensor:
        """Return the soft mask alone: earlier steps do not count."""
        return mask

    def alive(self, before: Tensor, now: Tensor) -> Tensor:
        """Return the decision alone."""
        return now

    def softened_attention(self, attention: LayerAttention, given: Any) -> LayerAttention:
        """Return the attention as if nothing were gone."""
        return replace(attention, mask=given, lse=None)


def departure_of(method: Method, first: Stage, ahead: Ahead) -> GoneForGood:
    """Return the rule that a method's pass follows."""
    return MayReturn(first, ahead) if method.revives else GoneForGood(first, ahead)
