"""DivPrune: keep the tokens that differ most from each other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import RankingConfig
from ..fields import BEFORE_DECODER, checked, layer_number
from .base import Method
from .context import Context, Criterion, Selection
from .registry import register_method
from .selecting import greedily, max_count, row_of, token_counts

__all__ = ["DivPrune", "DivPruneConfig"]


@dataclass(frozen=True)
class DivPruneConfig(RankingConfig):
    """Configuration of DivPrune (arXiv 2503.02175).

    Parameters
    ----------
    layer : int
        The decoder layer, counted from 0, after which tokens are dropped; -1 (`BEFORE_DECODER`),
        as in the paper: before the first.
    keep : int or float
        How many visual tokens of each sample stay: an int is a number of tokens, a float in (0, 1]
        a share of the sample's own.
    positions : {"kept", "renumbered"}
        Which positions survivors have; see `MethodConfig`.
    """

    layer: int = checked(BEFORE_DECODER, layer_number(BEFORE_DECODER))


@register_method("divprune", DivPruneConfig)
class DivPrune(Method):
    """Keep the set whose smallest distance is as large as can be (arXiv 2503.02175, Alg. 1).

    Max-min diversity by the paper's greedy rule, on the cosine distance of the tokens' hidden
    states: first the token farthest from its nearest neighbour, then always the one farthest from
    all that were taken.
    """

    def select(self, context: Context) -> Selection:
        """Keep the most diverse tokens."""
        visual = context.layout.mask
        count = token_counts(self.config.keep, context.layout.counts())
        steps = max_count(self.config.keep, visual.shape[1])
        keep = most_diverse(context.hidden_states, visual, count, steps)
        return Selection(keep=keep, criteria=(Criterion("farthest from those taken", met=keep),))


def most_diverse(features: Tensor, among: Tensor, count: Tensor, steps: int) -> Tensor:
    """Choose greedily the tokens that are farthest from those chosen before.

    Parameters
    ----------
    features : (batch, tokens, width)
    among, count, steps
        See `selecting.greedily`.

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

    def nearer(nearest: Tensor, best: Tensor, step: int) -> Tensor:
        row = row_of(distance, best)
        return row if step == 0 else torch.minimum(nearest, row)

    return greedily(nearest, among, count, steps, nearer)
