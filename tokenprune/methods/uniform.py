"""A uniform grid of tokens: the baseline that knows nothing of the picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..config import SingleLayerConfig
from .base import Context, Method, Selection
from .registry import register_method

__all__ = ["Uniform", "UniformConfig", "coarse_lines"]


@dataclass(frozen=True)
class UniformConfig(SingleLayerConfig):
    """A uniform grid of tokens, a baseline.

    Parameters
    ----------
    share : float
        Of the tokens that stay: each side of a frame's grid keeps about √share of its lines.
    layer : int
        The decoder layer, counted from 0, after which tokens are dropped; -1: before the first.

    Raises
    ------
    ValueError
        If a value is outside what is allowed; it names the value and what was expected.
    """

    earliest: ClassVar[int] = -1

    share: float = 0.25
    layer: int = -1

    def __post_init__(self) -> None:
        """Check every field."""
        super().__post_init__()
        self._check_number("share", "a share between 0 and 1", lambda n: 0 < n <= 1)


def coarse_lines(size: Tensor, share: float) -> Tensor:
    """Lines of a coarser grid with a share of the area: int64, of the shape of `size`."""
    return (size.double() * share**0.5).round().clamp(min=1).long()


def middle(place: Tensor, size: Tensor, share: float) -> Tensor:
    """Whether a line is the middle one of those that a line of the coarser grid stands for.

    Parameters
    ----------
    place, size : int64, any shape
        Line, and number of lines.
    share : float
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

    Parameters
    ----------
    config : UniformConfig
    visual_tokens : int
        Not needed; every method is told.
    """

    def __init__(self, config: UniformConfig, visual_tokens: int) -> None:
        super().__init__()
        self.config = config
        self.layers = (config.layer,)

    def select(self, context: Context) -> Selection:
        """The tokens on the grid."""
        layout, share = context.layout, self.config.share
        rows = middle(layout.row, layout.height, share)
        cols = middle(layout.col, layout.width, share)
        return Selection(keep=layout.mask & (layout.row >= 0) & rows & cols)
