"""DivPrune: keep the tokens that differ most from each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import SingleLayerConfig
from .base import Context, Method, Selection
from .ranking import check_keep, max_count, token_counts
from .registry import register_method

__all__ = ["DivPrune", "DivPruneConfig"]


@dataclass(frozen=True)
class DivPruneConfig(SingleLayerConfig):
    """DivPrune (arXiv 2503.02175).

    Parameters
    ----------
    keep : float
        How many visual tokens of each sample stay: a number from 1, or a share below 1.
    layer : int
        The decoder layer, counted from 0, after which tokens are dropped; -1, as in the paper:
        before the first.

    Raises
    ------
    ValueError
        If a value is outside what is allowed; it names the value and what was expected.
    """

    earliest: ClassVar[int] = -1

    keep: float = 0.25
    layer: int = -1

    def __post_init__(self) -> None:
        """Check every field."""
        super().__post_init__()
        check_keep("keep", self.keep)


@register_method("divprune", DivPruneConfig)
class DivPrune(Method):
    """Keep the set whose smallest distance is as large as can be (arXiv 2503.02175, Alg. 1).

    Max-min diversity by the paper's greedy rule, on the cosine distance of the tokens' hidden
    states: first the token farthest from its nearest neighbour, then always the one farthest from
    all that were taken.

    Parameters
    ----------
    config : DivPruneConfig
    visual_tokens : int
        Not needed; every method is told.
    """

    def __init__(self, config: DivPruneConfig, visual_tokens: int) -> None:
        super().__init__()
        self.config = config
        self.layers = (config.layer,)

    def select(self, context: Context) -> Selection:
        """The most diverse tokens."""
        visual = context.layout.mask
        count = token_counts(self.config.keep, context.layout.counts())
        steps = max_count(self.config.keep, visual.shape[1])
        return Selection(keep=most_diverse(context.hidden_states, visual, count, steps))


def most_diverse(features: Tensor, among: Tensor, count: Tensor, steps: int) -> Tensor:
    """Choose greedily the tokens that are farthest from those chosen before.

    Parameters
    ----------
    features : (batch, tokens, width)
    among : bool, (batch, tokens)
        Which may be chosen.
    count : int64, (batch, 1)
        How many are.
    steps : int
        At least the largest count.

    Returns
    -------
    bool, (batch, tokens)
    """
    unit = F.normalize(features.float(), dim=-1)
    distance = 1 - unit @ unit.transpose(1, 2)
    itself = torch.eye(distance.shape[1], dtype=torch.bool, device=distance.device)
    away = itself | ~among[:, None]
    # Distance to the nearest: at first of all tokens, then of those chosen.
    nearest = distance.masked_fill(away, float("inf")).amin(dim=2)
    chosen = torch.zeros_like(among)
    for step in range(steps):
        best = nearest.masked_fill(~among | chosen, float("-inf")).argmax(dim=1, keepdim=True)
        fresh = torch.zeros_like(chosen).scatter(1, best, True) & (step < count)
        chosen = chosen | (fresh & among)
        row = distance.gather(1, best[..., None].expand(-1, -1, distance.shape[2]))[:, 0]
        nearest = row if step == 0 else torch.minimum(nearest, row)
    return chosen
