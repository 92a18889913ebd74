"""Down-sampling: the plain way to have fewer visual tokens."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..config import PreDecoderConfig
from ..fields import budget, checked
from .base import Method
from .context import Context, Selection
from .pooling import pooled
from .registry import register_method
from .selecting import share_of
from .uniform import coarse_lines

__all__ = ["Downsample", "DownsampleConfig"]


@dataclass(frozen=True)
class DownsampleConfig(PreDecoderConfig):
    """Configuration of down-sampling, a baseline.

    Parameters
    ----------
    keep : int or float
        About how many visual tokens of each sample there are then: an int is a number of tokens, a
        float in (0, 1] a share of the sample's own. Each side of a frame's grid shrinks to about
        √share of its lines.
    positions : {"kept", "renumbered"}
        Which positions survivors have; see `MethodConfig`.
    """

    keep: int | float = checked(0.25, budget)


@register_method("downsample", DownsampleConfig)
class Downsample(Method):
    """Average the projected features over the cells of a coarser grid, before the decoder.

    For towers of one fixed resolution this is what a smaller picture comes to; where a tower takes
    any size, a smaller picture itself needs no library.
    """

    def select(self, context: Context) -> Selection:
        """Average the cells."""
        layout = context.layout
        share = share_of(self.config.keep, layout.counts())

        def cell(place: Tensor, size: Tensor) -> Tensor:
            lines = coarse_lines(size, share)
            return (place * lines).div(size.clamp(min=1), rounding_mode="floor")

        rows, cols = cell(layout.row, layout.height), cell(layout.col, layout.width)
        return pooled(context.hidden_states, layout, rows, cols)
