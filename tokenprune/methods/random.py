"""Random pruning: the baseline that every method must beat."""

from __future__ import annotations

import torch

from ..config import RandomConfig
from .base import Context, Method, Selection

__all__ = ["Random"]


class Random(Method):
    """Keep so many visual tokens, chosen at random, after each layer.

    A count with a fraction is rounded up or down at random for each sample, so that the mean over
    many samples is the count itself.

    Parameters
    ----------
    config : RandomConfig
    visual_tokens : int
        Not needed; every method is told.
    """

    def __init__(self, config: RandomConfig, visual_tokens: int) -> None:
        super().__init__()
        self.config = config
        self.layers = config.layers or ()
        self._generator = torch.Generator().manual_seed(config.seed)

    def select(self, context: Context) -> Selection:
        """Draw this module's tokens."""
        visual = context.layout.mask
        draws = torch.rand(visual.shape, generator=self._generator).to(visual.device)
        extra = torch.rand(visual.shape[0], 1, generator=self._generator).to(visual.device)
        count = (self.config.keep[context.module] + extra).floor()
        rank = draws.masked_fill(~visual, -1.0).argsort(dim=1, descending=True).argsort(dim=1)
        return Selection(keep=visual & (rank < count))
