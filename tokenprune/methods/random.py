"""Random pruning: the baseline that every method must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..config import MultiLayerConfig
from ..fields import (
    BEFORE_DECODER,
    MAX_TOKENS,
    budget_or_zero,
    checked,
    integer,
    layer_numbers,
    number,
    one_for_each_layer,
    optional,
)
from .context import Context
from .ranking import RankingMethod
from .registry import register_method
from .selecting import at_step

__all__ = ["Random", "RandomConfig"]


@dataclass(frozen=True)
class RandomConfig(MultiLayerConfig):
    """Configuration of random pruning, a baseline.

    Parameters
    ----------
    layers : tuple of int, optional
        Decoder layers, counted from 0, after which tokens are dropped; -1 (`BEFORE_DECODER`):
        before the first. None: the family's default.
    keep : int or float, or a tuple with one for each layer
        How many visual tokens of each sample stay: an int is a number of tokens, a float in (0, 1]
        a share of those that the sample still has at the layer. 0 drops all.
    seed : int
        Seed of the draws.
    mean_tokens : float, or a tuple with one for each layer, optional
        Instead of `keep`: the number of tokens that stay, on average over samples, such as the mean
        that another method kept. A fraction is rounded up or down at random for each sample.
    positions : {"kept", "renumbered"}
        Which positions survivors have; see `MethodConfig`.

    Examples
    --------
    >>> tp.RandomConfig(layers=(3, 13), mean_tokens=(140.5, 32.25)).keep
    0.5
    """

    layers: tuple[int, ...] | None = checked(None, optional(layer_numbers(BEFORE_DECODER)))
    keep: int | float | tuple[int | float, ...] = checked(0.5, one_for_each_layer(budget_or_zero))
    seed: int = checked(0, integer(-(2**63), 2**63 - 1))  # what torch.Generator takes
    mean_tokens: float | tuple[float, ...] | None = checked(
        None, optional(one_for_each_layer(number(least=0, most=MAX_TOKENS)))
    )


@register_method("random", RandomConfig)
class Random(RankingMethod):
    """Keep visual tokens chosen at random."""

    score_name = "random number"

    def __init__(self, config: RandomConfig | None = None) -> None:
        super().__init__(config)
        self._generator = torch.Generator().manual_seed(self.config.seed)

    def score(self, context: Context) -> Tensor:
        """Return a random number for each token."""
        return self._draw(*context.layout.mask.shape).to(context.layout.mask.device)

    def counts(self, context: Context) -> Tensor:
        """Return how many visual tokens each row keeps, by `keep` or `mean_tokens`: (batch, 1)."""
        visual = context.layout.mask
        # Drawn where it is not used too: a seed stands for the same draws whatever is kept.
        extra = self._draw(len(visual), 1).to(visual.device)
        mean = at_step(self.config.mean_tokens, context.step)
        return super().counts(context) if mean is None else (mean + extra).floor()

    def _draw(self, *shape: int) -> Tensor:
        # Neither torch's default dtype nor its default device may change the draws.
        how: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
        return torch.rand(shape, generator=self._generator, **how)
