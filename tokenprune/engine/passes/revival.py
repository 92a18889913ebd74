"""What becomes of dropped tokens: gone for good, or asked about again at every later step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from ...methods.base import Method
from ..arguments import without_cache
from ..survivors import Survivors, gather_hidden, scatter_hidden, survivors
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
    """

    def __init__(self, first: Stage) -> None:
        self.first = first

    # -- tokens are really dropped -------------------------------------------------------------

    def before_layer(
        self, layer: int, module: nn.Module, kwargs: dict[str, Any], inputs: LayerInputs
    ) -> None:
        """Prepare for a layer whose attention the method asks for."""

    def intercept(self, key: Tensor) -> None:
        """Take note of the keys that a layer made."""

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


class _KeysMade(Exception):  # noqa: N818 - not an error: it ends the layer early
    """Raised by a layer's attention when it has its keys and the rest is not needed."""

    def __init__(self, key: Tensor) -> None:
        super().__init__("the keys of tokens that were dropped")
        self.key = key


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

    def __init__(self, first: Stage) -> None:
        super().__init__(first)
        self._departed: Departure | None = None
        # Of the layer that runs now: the keys that tokens that are gone would have, and who would
        # see them.
        self._returning: tuple[Tensor, Tensor] | None = None
        self._only_keys = False

    def before_layer(
        self, layer: int, module: nn.Module, kwargs: dict[str, Any], inputs: LayerInputs
    ) -> None:
        """Make the keys that tokens that are gone would have in this layer."""
        self._returning = None
        departed = self._departed
        if departed is None or departed.gone is None:
            return
        given = {**kwargs, **inputs.positions(kwargs, departed.gone)}
        states = gather_hidden(departed.states, departed.gone.index)
        key = self._keys(module.forward, states, given)
        mask = inputs.mask_with(kwargs.get("attention_mask"), layer, departed.gone)
        self._returning = key, mask

    @torch.no_grad()
    def _keys(self, forward: Callable[..., Any], hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """Return the keys that a layer makes of hidden states: (batch, kv_heads, tokens, width).

        The layer runs up to its attention, where `intercept` ends it: whatever the family does
        before that (norms, projections, rotary embeddings) is done as the family does it.
        """
        self._only_keys = True
        try:
            forward(hidden, **{**without_cache(kwargs), "attention_mask": None})
        except _KeysMade as made:
            return made.key
        finally:
            self._only_keys = False
        raise RuntimeError("The layer ran without its attention being seen: wrap the model again.")

    def intercept(self, key: Tensor) -> None:
        """End a layer that was run for its keys alone."""
        if self._only_keys:
            raise _KeysMade(key)

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


def departure_of(method: Method, first: Stage) -> GoneForGood:
    """Return the rule that a method's pass follows."""
    return MayReturn(first) if method.revives else GoneForGood(first)
