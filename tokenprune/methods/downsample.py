"""Down-sampling: the plain way to have fewer visual tokens."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..config import PreDecoderConfig
from .base import Context, Method, Selection
from .pooling import pooled
from .registry import register_method
from .uniform import coarse_lines

__all__ = ["Downsample", "DownsampleConfig"]


@dataclass(frozen=True)
class DownsampleConfig(PreDecoderConfig):
    """Down-sampling, a baseline.

    Parameters
    ----------
    share : float
        Of the area: each side of a frame's grid shrinks to about √share of its lines.

    Raises
    ------
    ValueError
        If a value is outside what is allowed; it names the value and what was expected.
    """

    share: float = 0.25

    def __post_init__(self) -> None:
        """Check every field."""
        self._check_number("share", "a share between 0 and 1", lambda n: 0 < n <= 1)


@register_method("downsample", DownsampleConfig)
class Downsample(Method):
    """Average the projected features over the cells of a coarser grid, before the decoder.

    For towers of one fixed resolution this is what a smaller picture comes to; where a tower takes
    any size, a smaller picture itself needs no library.

    Parameters
    ----------
    config : DownsampleConfig
    visual_tokens : int
        Not needed; every method is told.
    """

    layers = (-1,)

    def __init__(self, config: DownsampleConfig, visual_tokens: int) -> None:
        super().__init__()
        self.config = config

    def select(self, context: Context) -> Selection:
        """The means."""
        layout = context.layout

        def cell(place: Tensor, size: Tensor) -> Tensor:
            lines = coarse_lines(size, self.config.share)
            return (place * lines).div(size.clamp(min=1), rounding_mode="floor")

        rows, cols = cell(layout.row, layout.height), cell(layout.col, layout.width)
        return pooled(context.hidden_states, layout, rows, cols)
