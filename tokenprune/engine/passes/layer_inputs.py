"""A decoder layer's mask and positions, for the tokens that it computes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..arguments import is_per_token
from ..cached_positions import cached_columns, extend
from ..masks import causal_by_position, select_mask, soften
from ..survivors import Survivors, gather_positions
from .facts import PassFacts
from .stage import Stage

__all__ = ["LayerInputs", "SoftenedInputs"]


class LayerInputs:
    """The layers' arguments during one stage, each made once.

    Parameters
    ----------
    facts : PassFacts
    first : Stage, optional
        The pass's first stage; needed where tokens are gone.
    kept : Survivors, optional
        The pass's positions that the layers compute on. None: all.
    """

    def __init__(
        self, facts: PassFacts, first: Stage | None = None, kept: Survivors | None = None
    ) -> None:
        self.facts = facts
        self.first = first
        self.kept = kept
        self._memo: dict[tuple[Any, ...], tuple[Any, Any]] = {}

    def adapt(self, layer: int, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return a layer's arguments with the mask and positions of this stage."""
        held = self.facts.held.get(layer)
        if held is None and self.kept is None:
            return kwargs
        # Layers that are given the same are given the same again: one look-up for each.
        names = ("attention_mask", *filter(is_per_token, kwargs))
        given = [kwargs.get(name) for name in names]
        key = (id(held), *map(id, given))
        return kwargs | self._once(key, given, lambda: self._changed(layer, kwargs))

    def _changed(self, layer: int, kwargs: dict[str, Any]) -> dict[str, Any]:
        given, held = kwargs.get("attention_mask"), self.facts.held.get(layer)
        key = ("mask", id(given), id(held))
        mask = self._once(key, given, lambda: self._mask(given, layer))
        taken = {} if self.kept is None else self.positions(kwargs, self.kept)
        return {"attention_mask": mask, **taken}

    def positions(self, kwargs: dict[str, Any], tokens: Survivors) -> dict[str, Any]:
        """Return those arguments that have an entry for each token, at some tokens."""
        index = tokens.index
        if not self.facts.method.keeps_positions and self.first is not None:
            index = self.first.first_positions(index.shape[1])
        taken = {}
        for name, value in kwargs.items():
            if value is not None and is_per_token(name):
                axis = -1 if name.endswith("_ids") else -2
                taken[name] = self._once(
                    (name, id(value), id(tokens)), (value, tokens), _gatherer(value, index, axis)
                )
        return taken

    def _once(self, key: tuple[Any, ...], source: Any, make: Callable[[], Any]) -> Any:
        """Make a value once per stage. The source is held, so that its id stays its own."""
        if key not in self._memo:
            self._memo[key] = (source, make())
        return self._memo[key][1]

    def _mask(self, given: Any, layer: int) -> Any:
        """Return the mask over the keys that a layer really has."""
        facts, kept, held = self.facts, self.kept, self.facts.held.get(layer)
        if kept is not None and facts.past == 0 and (facts.causal or given is None):
            # Survivors stand in order with padding behind them: plain causal attention is right.
            return facts.backend.causal(kept.index.shape[1], facts.dtype, kept.index.device)
        if given is None:
            # One new token that sees all there is, or flash attention, causal by itself.
            valid = None if held is None else held.kept.valid
            if valid is None:
                return None
            new = facts.length if kept is None else kept.index.shape[1]
            return facts.backend.decoding(valid, facts.cache.get_seq_length(layer) + new)
        fresh = kept
        if fresh is None:
            assert held is not None  # `adapt` returns early where neither is
            every = torch.arange(facts.length, device=held.kept.index.device)
            fresh = Survivors(every.expand(held.kept.index.shape[0], -1), None)
        # The keys that this layer is about to have are the mask's columns.
        columns = extend(held, facts.past, fresh, facts.length).kept
        return facts.backend.select(given, columns, kept)

    def mask_with(self, given: Any, layer: int, others: Survivors) -> Tensor:
        """Return what this stage's tokens would see if others had their keys behind all that are.

        Returns
        -------
        Tensor
            As `select_mask` returns it, or bool, (batch, 1, queries, keys).
        """
        facts, kept = self.facts, self.kept
        assert kept is not None  # others are gone, so some are left
        columns = cached_columns(facts.held.get(layer), facts.past, kept.index)
        for some in (kept, others):
            columns = columns.concatenated(some.shifted(facts.past))
        if given is None or (facts.past == 0 and facts.causal):
            return causal_by_position(kept.index + facts.past, columns)
        dense = facts.backend.dense(given, facts.length, facts.past + facts.length)
        assert dense is not None
        return select_mask(dense, columns, kept)


class SoftenedInputs(LayerInputs):
    """The layers' arguments between two steps of a softened pass.

    Parameters
    ----------
    facts : PassFacts
    weight : float32, (batch, length), optional
        The factor with which each token counts, 1 at text. None: before the first step.
    """

    def __init__(self, facts: PassFacts, weight: Tensor | None = None) -> None:
        super().__init__(facts)
        self.weight = weight

    def adapt(self, layer: int, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return a layer's arguments with a softened mask."""
        weight, facts = self.weight, self.facts
        if weight is None:
            return kwargs
        if not facts.backend.softens:
            raise ValueError(
                f"{facts.backend.name} takes no additive mask, which training the heads needs: "
                'load the model with attn_implementation="sdpa" to train, and with '
                f"{facts.backend.name} to run."
            )
        given = kwargs.get("attention_mask")

        def softened() -> Tensor:
            dense = facts.backend.dense(given, facts.length, facts.length)
            return soften(dense, weight, facts.method.floor, facts.dtype)

        return {**kwargs, "attention_mask": self._once((id(given),), given, softened)}


def _gatherer(value: Any, index: Tensor, axis: int) -> Callable[[], Any]:
    def gather() -> Any:
        if isinstance(value, tuple):
            return tuple(gather_positions(v, index, axis) for v in value)
        return gather_positions(value, index, axis)

    return gather
