"""The pass that drops tokens: later layers compute on the survivors alone."""

from __future__ import annotations

import logging
import weakref
from typing import Any

import torch
from torch import Tensor, nn

from ...methods.context import Selection
from ...releases import verified_releases
from .. import caches, recompute
from ..arguments import cache_in
from ..cached_positions import CachedPositions, extend, widened
from ..record import Decision
from ..survivors import gather_hidden, scatter_hidden, survivors
from ..vision_tower import TowerAttention
from .deciding import DecidingPass
from .drops import Drop, full_length
from .facts import PassFacts
from .finite import count_not_finite, raise_if_not_finite
from .layer_inputs import LayerInputs
from .stage import Stage

__all__ = ["PruningPass"]


_log = logging.getLogger(__name__)


class PruningPass(DecidingPass):
    """Drop the tokens that the method does not keep; parameters are those of `DecidingPass`."""

    def __init__(self, facts: PassFacts, first: Stage, patches: Tensor | None) -> None:
        super().__init__(facts, LayerInputs(facts, first), first, patches)
        self._held = dict(facts.held)
        # Decoder layer → what was dropped after it.
        self._drops: dict[int, Drop] = {}

    def begin(
        self, layer: nn.Module, kwargs: dict[str, Any], hidden: Tensor, tower: TowerAttention | None
    ) -> Tensor:
        """See `Pass.begin`."""
        recompute.check_dropping(layer)
        return super().begin(layer, kwargs, hidden, tower)

    def before_layer(self, layer: int, module: nn.Module, kwargs: dict[str, Any]) -> dict[str, Any]:
        """See `Pass.before_layer`."""
        method = self.facts.method
        if method.needs and layer in method.layers:
            self.departure.before_layer(layer, module, kwargs, self.inputs)
        return super().before_layer(layer, module, kwargs)

    def query_weight(self) -> Tensor:
        """Return 1 at the visual tokens that are left."""
        return self.stage.layout.mask.float()

    def shown_weight(self, candidates: Stage) -> Tensor:
        """Return 1 at the visual tokens that may be kept."""
        return candidates.layout.mask.float()

    def after_first_layer(self) -> None:
        """Lay the first layer's cache out at full length, zeros where a token was dropped.

        transformers reads the number of tokens seen, and so the next positions, off this layer.
        """
        facts = self.facts
        if facts.cache is None or -1 not in self._drops:
            return
        kept = self._drops[-1].kept
        caches.widen_first_layer(facts.cache, kept, facts.length)
        self._held[0] = widened(facts.held.get(0), facts.past, kept, facts.length)
        caches.store(facts.cache, self._held)

    def apply(
        self, layer: int, candidates: Stage, selection: Selection, states: Tensor, hidden: Tensor
    ) -> Tensor:
        """Go on with those of the candidates that are kept."""
        facts, visual = self.facts, candidates.layout.mask
        present = candidates.everything()
        stays = selection.keep | ~visual
        if selection.keep_text is not None:
            stays = stays & (selection.keep_text | ~candidates.text)
        alive = (present & stays) | candidates.read
        changed = states
        if selection.hidden_states is not None:
            changed = selection.hidden_states.to(states.device)
        # The one transfer to the host that dropping needs: the least and the most of each count.
        counts = {"alive": alive.sum(dim=1), "dropped": (present & ~alive).sum(dim=1)}
        counts |= count_not_finite(changed, selection, visual)
        counts |= self.departure.count(alive, visual)
        if candidates.layout.complete is not None:
            counts["partial"] = (~candidates.layout.complete).long().expand(len(visual))
        ends = torch.stack(torch.aminmax(torch.stack(list(counts.values())), dim=1), dim=1)
        found = dict(zip(counts, ends.tolist(), strict=True))
        _check_whole_images(found)
        raise_if_not_finite(found, layer, facts.method)
        if not any(found["dropped"]) and candidates is self.stage:
            self.decisions.append(Decision(layer, None, selection.thresholds))
            return changed
        fewest, most = found["alive"]
        _log.debug("After layer %d: rows keep %d to %d positions", layer, fewest, most)
        kept = survivors(alive, most, ragged=most != fewest)
        if selection.order is not None and not facts.method.keeps_positions:
            kept = kept.rearranged(visual, candidates.layout.image, selection.order)
        before = self.stage.kept
        self.stage = candidates.after_dropping(kept)
        left = self.stage.kept
        assert left is not None  # `after_dropping` names them
        gathered = gather_hidden(changed, kept.index)
        self.departure.note(alive, visual, changed, found)
        self.inputs = LayerInputs(facts, self.first, left)
        self.decisions.append(Decision(layer, left, selection.thresholds))
        merged = None if changed is hidden else gathered
        self._drops[layer] = Drop(weakref.ref(hidden), before, left, merged)
        self._note_on_cache(layer)
        return gathered

    def _note_on_cache(self, layer: int) -> None:
        """Note on the cache which keys the layers after `layer` are about to get."""
        facts, kept = self.facts, self.stage.kept
        if facts.cache is None or kept is None:
            return
        made: dict[int, CachedPositions] = {}  # layers that held the same share the answer
        for later in range(layer + 1, facts.num_layers):
            held = facts.held.get(later)
            if id(held) not in made:
                made[id(held)] = extend(held, facts.past, kept, facts.length)
            self._held[later] = made[id(held)]
        caches.store(facts.cache, self._held)

    def after_last_layer(self, hidden: Tensor) -> Tensor:
        """Return hidden states at the full length, zeros where tokens were dropped."""
        kept = self.stage.kept
        return hidden if kept is None else scatter_hidden(hidden, kept, self.facts.length)

    def check_output(self, output: Any) -> None:
        """Refuse a pass that dropped tokens while the model filled a cache that was not seen.

        Raises
        ------
        RuntimeError
            If the core returns such a cache.
        """
        values = output.values() if isinstance(output, dict) else output
        filled = cache_in(values) if isinstance(output, dict | tuple) else None
        if filled is None or filled is self.facts.cache or not self._drops:
            return
        if filled.get_seq_length():
            raise RuntimeError(
                f"The model filled a {type(filled).__name__} that its decoder layers were not "
                "given in a way that is known here, so it does not know which tokens were "
                f"dropped. {verified_releases()}: use one of these releases, call the model with "
                "use_cache=False, or run the prompt inside tokenprune.paused(model)."
            )

    def full_length(self, hidden_states: tuple[Any, ...]) -> tuple[Any, ...]:
        """See `Pass.full_length`."""
        if not self._drops:
            return hidden_states
        return full_length(hidden_states, self._drops, self.facts.length, self.facts.num_layers)


def _check_whole_images(found: dict[str, Any]) -> None:
    if any(found.get("partial", ())):
        raise ValueError(
            "The visual tokens of this call are not those of whole images: was the prompt cut "
            "into chunks? Which of them stay is decided by the whole prompt: run it in one "
            "call, or inside tokenprune.paused(model)."
        )
