"""A uniform grid of tokens: the baseline that knows nothing of the picture."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..config import RankingConfig
from ..fields import BEFORE_DECODER, checked, layer_number
from .base import Method
from .context import Context, Criterion, Selection
from .registry import register_method
from .selecting import share_of

__all__ = ["Uniform", "UniformConfig", "coarse_lines"]


@dataclass(frozen=True)
class UniformConfig(RankingConfig):
    """Configuration of a uniform grid of tokens, a baseline.

    Parameters
    ----------
    layer : int
        The decoder layer, counted from 0, after which tokens are dropped; -1 (`BEFORE_DECODER`):
        before the first.
    keep : int or float
        About how many visual tokens of each sample stay: an int is a number of tokens, a float in
        (0, 1] a share of the sample's own. Each side of a frame's grid keeps about √share of its
        lines.
    positions : {"kept", "renumbered"}
        Which positions survivors have; see `MethodConfig`.
    """

    layer: int = checked(BEFORE_DECODER, layer_number(BEFORE_DECODER))


def coarse_lines(size: Tensor, share: float | Tensor) -> Tensor:
    """Return the number of lines of a grid with a share of the area: int64, as `size`."""
    return (size.double() * share**0.5).round().clamp(min=1).long()


def middle(place: Tensor, size: Tensor, share: float | Tensor) -> Tensor:
    """Return whether a line is the middle one of those that one of the coarser grid stands for.

    Parameters
    ----------
    place, size : int64, (batch, tokens)
        Line, and number of lines.
    share : float, or float64 (batch, 1)
        Of the area.

    Returns
    -------
    bool, of the same shape
    """
    lines = coarse_lines(size, share)
    own = (place * lines).div(size.clamp(min=1), rounding_mode="floor")
    first = -(-own * size).div(lines, rounding_mode="floor")
    last = ((own + 1) * size + lines - 1).div(lines, rounding_mode="floor") - 1
    return place == (first + last).div(2, rounding_mode="floor")


@register_method("uniform", UniformConfig)
class Uniform(Method):
    """Keep the token in the middle of each cell of a coarser grid, frame by frame.

    Tokens without a place (line ends, class tokens) go.
    """

    def select(self, context: Context) -> Selection:
        """Keep the tokens on the grid."""
        layout = context.layout
        share = share_of(self.config.keep, layout.counts())
        rows = middle(layout.row, layout.height, share)
        cols = middle(layout.col, layout.width, share)
        keep = layout.mask & (layout.row >= 0) & rows & cols
        return Selection(keep=keep, criteria=(Criterion("middle of its cell", met=keep),))
