"""FastV: drop once, by what the prompt's last token looks at."""

from __future__ import annotations

from dataclasses import dataclass

from ..config import SingleLayerConfig
from .base import Context, Method, Selection
from .ranking import check_keep, highest, token_counts
from .registry import register_method

__all__ = ["FastV", "FastVConfig"]


@dataclass(frozen=True)
class FastVConfig(SingleLayerConfig):
    """FastV (arXiv 2403.06764).

    Parameters
    ----------
    layer : int
        The decoder layer, counted from 0, after which tokens are dropped. The paper's K is one
        more: the number of layers that see every token.
    keep : float
        How many visual tokens of each sample stay: a number from 1, or a share below 1. The
        paper's R is the share that goes.

    Raises
    ------
    ValueError
        If a value is outside what is allowed; it names the value and what was expected.
    """

    keep: float = 0.5

    def __post_init__(self) -> None:
        """Check every field."""
        super().__post_init__()
        check_keep("keep", self.keep)


@register_method("fastv", FastVConfig)
class FastV(Method):
    """Keep the visual tokens to which the prompt's last token attends most (arXiv 2403.06764, 3.2).

    The attention is that of the layer just run, mean over its heads. Not implemented: the authors'
    variant that masks tokens but computes on; here they are dropped and leave the cache.

    Parameters
    ----------
    config : FastVConfig
    visual_tokens : int
        Not needed; every method is told.
    """

    needs = frozenset({"last"})

    def __init__(self, config: FastVConfig, visual_tokens: int) -> None:
        super().__init__()
        self.config = config
        self.layers = (config.layer,)

    def select(self, context: Context) -> Selection:
        """The tokens with the highest attention."""
        scores = context.received["last"].total
        visual = context.layout.mask
        count = token_counts(self.config.keep, context.layout.counts())
        return Selection(keep=highest(scores, visual, count), scores=scores)
