"""Run a decoder layer up to its attention, for what that would be given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..arguments import without_cache
from .observed import LayerAttention

__all__ = ["Ahead"]


class _Reached(Exception):  # noqa: N818 - not an error: it ends the layer early
    """Raised by a layer's attention when it has its states and the rest is not needed."""

    def __init__(self, attention: LayerAttention) -> None:
        super().__init__("the attention of a layer that is run no further")
        self.attention = attention


class Ahead:
    """Runs layers up to their attention, where `reached` ends them.

    Whatever the family does before its attention (norms, projections, rotary embeddings) is done as
    the family does it.

    Attributes
    ----------
    running : bool
        Whether a layer is run so far now.
    """

    def __init__(self) -> None:
        self.running = False

    @torch.no_grad()
    def attention(
        self, forward: Callable[..., Any], hidden: Tensor, kwargs: dict[str, Any]
    ) -> LayerAttention:
        """Return a layer's queries, keys and values of some hidden states, without cached ones.

        Parameters
        ----------
        forward : callable
            The layer's.
        hidden : (batch, tokens, width)
        kwargs : dict
            The layer's other arguments, for these tokens. Its cache is left alone.

        Raises
        ------
        RuntimeError
            If the layer's attention is not seen.
        """
        self.running = True
        try:
            forward(hidden, **without_cache(kwargs))
        except _Reached as reached:
            return reached.attention
        finally:
            self.running = False
        raise RuntimeError("The layer ran without its attention being seen: wrap the model again.")

    def reached(self, attention: LayerAttention) -> None:
        """End a layer that is run no further than its attention."""
        if self.running:
            raise _Reached(attention)
