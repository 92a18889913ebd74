"""PyramidDrop: drop a fixed share at each of several layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..config import MultiLayerConfig
from .base import Context, Method, Selection
from .ranking import highest, token_counts
from .registry import register_method

__all__ = ["PyramidDrop", "PyramidDropConfig"]


@dataclass(frozen=True)
class PyramidDropConfig(MultiLayerConfig):
    """PyramidDrop (arXiv 2410.17247).

    Parameters
    ----------
    layers : tuple of int, optional
        Decoder layers, counted from 0, that end a stage. None: those at a quarter, half and three
        quarters of the depth, as in the paper.
    ratio : float
        The share of its visual tokens that each stage hands on; the paper's λ.

    Raises
    ------
    ValueError
        If a value is outside what is allowed; it names the value and what was expected.
    """

    default_depths: ClassVar[tuple[float, ...]] = (0.25, 0.5, 0.75)

    ratio: float = 0.5

    def __post_init__(self) -> None:
        """Check every field."""
        super().__post_init__()
        self._check_number("ratio", "a share between 0 and 1", lambda n: 0 < n < 1)


@register_method("pyramiddrop", PyramidDropConfig)
class PyramidDrop(Method):
    """Keep a share of the tokens, by the attention of the instruction's last token, stage by stage.

    arXiv 2410.17247, 3.2. The attention is that of the stage's last layer, mean over its heads; the
    authors compute that of the layer to come ahead of it. Not implemented: training with it from
    the start, which changes the model.

    Parameters
    ----------
    config : PyramidDropConfig
    visual_tokens : int
        Not needed; every method is told.
    """

    needs = frozenset({"last"})

    def __init__(self, config: PyramidDropConfig, visual_tokens: int) -> None:
        super().__init__()
        self.config = config
        self.layers = config.layers or ()

    def select(self, context: Context) -> Selection:
        """The tokens with the highest attention."""
        scores = context.received["last"].total
        count = token_counts(self.config.ratio, context.layout.counts())
        return Selection(keep=highest(scores, context.layout.mask, count), scores=scores)
