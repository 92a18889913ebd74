"""What the pruning pass and the softened pass share: asking the method at each of its steps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ...methods.context import ATTENTION_NEEDS, Context, Received, Selection, Tower
from .. import caches
from ..record import Basis, Decision, Record
from ..vision_tower import TowerAttention, read_tower
from .ahead import Ahead
from .base import Pass
from .facts import PassFacts
from .layer_inputs import LayerInputs
from .observed import LayerAttention, Observed, received_by_group
from .revival import departure_of
from .stage import Stage

__all__ = ["DecidingPass"]


class DecidingPass(Pass):
    """A pass in which a method decides.

    Parameters
    ----------
    facts : PassFacts
    inputs : LayerInputs
        Of the first stage.
    first : Stage
        The pass's tokens.
    patches : int64, (visual tokens,), optional
        See `Adapter.patches`.
    """

    def __init__(
        self, facts: PassFacts, inputs: LayerInputs, first: Stage, patches: Tensor | None
    ) -> None:
        super().__init__(facts, inputs)
        self.first = self.stage = first
        self.ahead = Ahead()
        self.departure = departure_of(facts.method, first, self.ahead)
        self.decisions: list[Decision] = []
        self._bases: list[Basis] = []
        self._patches = patches
        self._memory: Any = None
        self._tower: Tower | None = None
        self._observed: dict[int, Observed] = {}

    @property
    def changes_layers(self) -> bool:
        """See `Pass.changes_layers`."""
        return True

    def query_weight(self) -> Tensor:
        """Return how much each visual token of the stage counts as a query: (batch, tokens)."""
        raise NotImplementedError

    def shown_weight(self, candidates: Stage) -> Tensor:
        """Return how much of each candidate the method is shown to be there: (batch, tokens)."""
        raise NotImplementedError

    def apply(
        self, layer: int, candidates: Stage, selection: Selection, states: Tensor, hidden: Tensor
    ) -> Tensor:
        """Act on a selection among candidates, and return the layer's output from here on.

        Parameters
        ----------
        layer : int
        candidates : Stage
        selection : Selection
        states : Tensor, (batch, candidates, width)
            The candidates' hidden states.
        hidden : Tensor, (batch, tokens, width)
            The layer's output as it was.
        """
        raise NotImplementedError

    def begin(
        self, layer: nn.Module, kwargs: dict[str, Any], hidden: Tensor, tower: TowerAttention | None
    ) -> Tensor:
        """Let the method see the first layer's input, and decide there if it does so early."""
        method = self.facts.method
        if method.tower_layer is not None and tower is None:
            raise RuntimeError(
                f"{type(method).__name__} chooses by the vision tower's attention, but the "
                "tower did not run in this call: give pixel_values to the model or to generate, "
                "not features made before."
            )
        # Autocast would run the method in half precision.
        with torch.autocast(hidden.device.type, enabled=False):
            if tower is not None:
                self._tower = read_tower(tower, self.stage.layout, self._patches)
            self._memory = method.begin(self._context(-1, -1, self.stage, hidden))
        if method.looks_ahead:
            return self.look_ahead(0, layer, kwargs, hidden)
        return self.after_step(0, -1, hidden) if method.layers[0] < 0 else hidden

    def look_ahead(
        self, layer: int, module: nn.Module, kwargs: dict[str, Any], hidden: Tensor
    ) -> Tensor:
        """See `Pass.look_ahead`."""
        method, before = self.facts.method, layer - 1
        if not method.looks_ahead or before not in method.layers:
            return hidden
        if method.needs:
            given = self.inputs.adapt(layer, kwargs)
            attention = self.ahead.attention(module.forward, hidden, given)
            # As the layer will have them: with the keys of earlier turns, under its own mask.
            keys = [*caches.keys_of(self.facts.cache, layer, self.facts.past), attention.key]
            mask = given.get("attention_mask")
            self.observe(before, replace(attention, key=torch.cat(keys, dim=2), mask=mask))
        return self.after_step(method.layers.index(before), before, hidden)

    def reads_attention(self, layer: int | None) -> bool:
        """See `Pass.reads_attention`."""
        method = self.facts.method
        if self.ahead.running:
            return True
        return layer in method.layers and bool(method.needs) and not method.looks_ahead

    def reached(self, attention: LayerAttention) -> None:
        """See `Pass.reached`."""
        self.ahead.reached(attention)

    @torch.no_grad()
    def observe(self, layer: int, attention: LayerAttention) -> None:
        """Compute what the method asked for, and keep it for the step after the layer."""
        needs, home = self.facts.method.needs, self.first.layout.mask.device
        parts = {"queries": attention.query}
        parts |= {"keys": attention.own(attention.key), "values": attention.own(attention.value)}
        states = {name: part.to(home) for name, part in parts.items() if name in needs}
        groups = sorted(needs & ATTENTION_NEEDS)
        received = self._received(groups, attention) if groups else {}
        self._observed[layer] = Observed(received, states)

    def _received(self, groups: list[str], attention: LayerAttention) -> dict[str, Received]:
        attention, returning = self.departure.with_returning(attention)
        if not returning:
            sizes = attention.query.shape[2], attention.key.shape[2]
            mask = self.facts.backend.dense(attention.mask, *sizes)
            attention = replace(attention, mask=mask)
        weight = self.query_weight()
        by_group = received_by_group(groups, attention, self.stage, weight, returning)
        received = {}
        for name, (total, seen_by, queries) in by_group.items():
            parts = (
                self.departure.at_full_length(total, self.stage),
                self.departure.at_full_length(seen_by, self.stage),
                queries,
            )
            received[name] = Received(*(p if name == "each" else p.squeeze(1) for p in parts))
        return received

    def after_step(self, step: int, layer: int, hidden: Tensor) -> Tensor:
        """Let the method decide, and act on it."""
        method = self.facts.method
        if method.needs and layer >= 0 and layer not in self._observed:
            raise RuntimeError(
                f"The attention of decoder layer {layer} was not seen: its attention "
                "implementation was changed after tokenprune.wrap. Call tokenprune.unwrap(model), "
                "change it, and wrap again."
            )
        candidates, states = self.departure.candidates(self.stage, hidden)
        context = self._context(step, layer, candidates, states)
        # Autocast would run the thresholds in half precision.
        with torch.autocast(hidden.device.type, enabled=False):
            selection = method.select(context)
        output = self.apply(layer, candidates, selection, states, hidden)
        self._bases.append(Basis.of(context, selection))
        return output

    def _context(self, step: int, layer: int, stage: Stage, hidden: Tensor) -> Context:
        weight = self.shown_weight(stage)
        every = torch.arange(self.facts.length, device=weight.device).expand(hidden.shape[0], -1)
        observed = self._observed.pop(layer, Observed({}, {}))
        return Context(
            step=step,
            layer=layer,
            layout=stage.layout,
            weight=weight.detach(),
            prompt=stage.prompt,
            text=stage.text,
            received=observed.received,
            hidden_states=hidden.to(weight.device),
            positions=every if stage.kept is None else stage.kept.index,
            memory=self._memory,
            tower=self._tower if layer < 0 else None,
            **observed.states,
        )

    def record(self) -> Record:
        """See `Pass.record`."""
        first = self.first
        method = self.facts.method
        return Record(
            layout=first.layout,
            present=first.present,
            decisions=tuple(self.decisions),
            bases=tuple(self._bases),
            num_layers=self.facts.num_layers,
            method=type(method).__name__,
            revives=method.revives,
        )
