"""Matryoshka Multimodal Models: nested scales of average-pooled tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..config import ModelFacts, PreDecoderConfig
from ..fields import MAX_GRID_SIDE, checked, integer
from .base import Method
from .context import Context, Selection
from .pooling import pooled
from .registry import register_method

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Matryoshka", "MatryoshkaConfig"]


@dataclass(frozen=True)
class MatryoshkaConfig(PreDecoderConfig):
    """Configuration of Matryoshka Multimodal Models (arXiv 2405.17430).

    Parameters
    ----------
    stride : int
        Side of the windows that are averaged. On LLaVA's 24 x 24 tokens the paper's scales of 576,
        144, 36, 9 and 1 tokens are strides 1, 2, 4, 8 and 24.
    positions : {"kept", "renumbered"}
        Which positions survivors have; see `MethodConfig`.
    """

    stride: int = checked(2, integer(1, MAX_GRID_SIDE))


@register_method("matryoshka", MatryoshkaConfig)
class Matryoshka(Method):
    """Average the projected features over windows, before the decoder (arXiv 2405.17430, 3).

    `tokenprune.set_budget(model, 36)` chooses the scale of the calls to come. Grids of other sizes
    have smaller windows at their ends. Not implemented: the paper's training of the whole
    model at every scale at once (train it beside this with any trainer); a pooled token keeps the
    position of its window's first, where the paper closes the gaps.

    Parameters
    ----------
    config : MatryoshkaConfig
    visual_tokens : int
        Of one image, to which a budget refers.

    Attributes
    ----------
    stride : int
        The scale of the calls to come.
    """

    def __init__(self, config: MatryoshkaConfig, visual_tokens: int) -> None:
        super().__init__(config)
        self.stride = config.stride
        self.side = math.isqrt(visual_tokens)

    @classmethod
    def from_config(cls, config: Any, facts: ModelFacts) -> Self:
        """Build the method for a model's number of tokens."""
        return cls(config, facts.visual_tokens)

    def select(self, context: Context) -> Selection:
        """Average the windows."""
        layout = context.layout
        rows = layout.row.div(self.stride, rounding_mode="floor")
        cols = layout.col.div(self.stride, rounding_mode="floor")
        return pooled(context.hidden_states, layout, rows, cols)

    def set_budget(self, target_tokens: float) -> None:
        """Choose the finest scale with no more tokens; a float up to 1 is a share of them."""
        most = target_tokens
        if isinstance(most, float) and 0 < most <= 1:
            most *= self.side**2
        scales = range(1, self.side + 1)
        fitting = (s for s in scales if math.ceil(self.side / s) ** 2 <= most)
        stride = next(fitting, None)
        if stride is None:
            raise ValueError(f"target_tokens={target_tokens}: expected 1 or more.")
        self.stride = stride

    def runtime_state(self) -> dict[str, Any]:
        """Return the scale."""
        return {"stride": self.stride}

    def load_runtime_state(self, state: dict[str, Any]) -> None:
        """Restore the scale."""
        self.stride = MatryoshkaConfig(stride=state.get("stride", 0)).stride
