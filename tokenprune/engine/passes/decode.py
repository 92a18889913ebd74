"""A pass with nothing to prune: it decodes, has no images, or is paused."""

from __future__ import annotations

from .base import Pass
from .facts import PassFacts
from .layer_inputs import LayerInputs

__all__ = ["DecodePass"]


class DecodePass(Pass):
    """Give each layer the mask of the keys that its cache holds.

    Parameters
    ----------
    facts : PassFacts
    """

    def __init__(self, facts: PassFacts) -> None:
        super().__init__(facts, LayerInputs(facts))
