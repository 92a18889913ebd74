"""What the hooks ask of a pass."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..record import Record
from ..vision_tower import TowerAttention
from .facts import PassFacts
from .layer_inputs import LayerInputs
from .observed import LayerAttention

__all__ = ["Pass"]


class Pass:
    """One forward pass of the core, from its first decoder layer to its last.

    The methods stand in the order in which the hooks call them. As they are here, a pass gives each
    layer the mask of the keys that its cache holds, and changes nothing else.

    Parameters
    ----------
    facts : PassFacts
    inputs : LayerInputs
        What the next layer's arguments are made from.
    """

    def __init__(self, facts: PassFacts, inputs: LayerInputs) -> None:
        self.facts = facts
        self.inputs = inputs

    @property
    def changes_layers(self) -> bool:
        """Whether any layer but the first is given anything else than without this library."""
        return bool(self.facts.held)

    def begin(
        self, layer: nn.Module, kwargs: dict[str, Any], hidden: Tensor, tower: TowerAttention | None
    ) -> Tensor:
        """Return the first layer's input: (batch, tokens, width)."""
        return hidden

    def before_layer(self, layer: int, module: nn.Module, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return a layer's keyword arguments with this pass's mask and positions among them."""
        return self.inputs.adapt(layer, kwargs)

    def look_ahead(
        self, layer: int, module: nn.Module, kwargs: dict[str, Any], hidden: Tensor
    ) -> Tensor:
        """Return a layer's input, after the step before it if the method looks ahead.

        Parameters
        ----------
        layer : int
        module : nn.Module
            That layer.
        kwargs : dict
            Its other arguments as transformers gives them.
        hidden : (batch, tokens, width)
        """
        return hidden

    def reads_attention(self, layer: int | None) -> bool:
        """Return whether this layer's attention is to be given to `reached` and `observe`."""
        return False

    def reached(self, attention: LayerAttention) -> None:
        """End a layer that is run no further than its attention, which has not run yet."""

    def observe(self, layer: int, attention: LayerAttention) -> None:
        """Compute what the method asked of a layer's attention."""

    def after_first_layer(self) -> None:
        """Correct the first layer's cache, if tokens were dropped before that layer."""

    def after_step(self, step: int, layer: int, hidden: Tensor) -> Tensor:
        """Return what a layer's output becomes after a pruning step."""
        return hidden

    def after_last_layer(self, hidden: Tensor) -> Tensor:
        """Return hidden states at the full length: (batch, length, width)."""
        return hidden

    def check_output(self, output: Any) -> None:
        """Refuse a core's output that shows a cache which the pass did not see."""

    def full_length(self, hidden_states: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return collected hidden states, each at the full length; entry n is layer n's input."""
        return hidden_states

    def record(self) -> Record | None:
        """Return what this pass did, for the statistics. None: it had nothing to decide."""
        return None
