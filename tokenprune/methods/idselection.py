"""ID-Selection: importance first, similar tokens suppressed as tokens are taken."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from ..config import RankingConfig
from ..fields import checked, number
from .base import Method
from .context import Context, Criterion, Selection
from .registry import register_method
from .selecting import greedily, max_count, row_of, token_counts

__all__ = ["IDSelection", "IDSelectionConfig"]


@dataclass(frozen=True)
class IDSelectionConfig(RankingConfig):
    """Configuration of ID-Selection (arXiv 2604.05601).

    Parameters
    ----------
    layer : int
        The decoder layer, counted from 0, after which tokens are dropped.
    keep : int or float
        How many visual tokens of each sample stay: an int is a number of tokens, a float in (0, 1]
        a share of the sample's own.
    gamma : float
        How fast suppression falls with the squared distance; the paper's γ.
    positions : {"kept", "renumbered"}
        Which positions survivors have; see `MethodConfig`.
    """

    gamma: float = checked(20.0, number(above=0, most=1e6))


@register_method("idselection", IDSelectionConfig)
class IDSelection(Method):
    """Take the most important token, suppress those like it, and so on (arXiv 2604.05601).

    Importance is the attention of the prompt's last token in an early decoder layer, stretched to
    [0, 1]: the paper's choice for towers without a class token. When a token of score s is taken,
    every other loses s·exp(−γ·d²), d the cosine distance of their hidden states, down to 0 at
    least. Not implemented: importance from a tower's class token, and the mean of both. The rule
    was taken from its descriptions and two public re-implementations, which agree.
    """

    needs = frozenset({"last"})

    def select(self, context: Context) -> Selection:
        """Take tokens by importance, suppressing what is similar."""
        visual = context.layout.mask
        scores = context.received["last"].total
        count = token_counts(self.config.keep, context.layout.counts())
        steps = max_count(self.config.keep, visual.shape[1])
        keep = suppressing(scores, context.hidden_states, visual, count, steps, self.config.gamma)
        # The rank alone does not say who is taken: tokens like those taken before lose score.
        taken = Criterion("importance where not suppressed", scores, met=keep)
        return Selection(keep=keep, scores=scores, criteria=(taken,))


def suppressing(
    scores: Tensor, features: Tensor, among: Tensor, count: Tensor, steps: int, gamma: float
) -> Tensor:
    """Choose by score, lowering the scores of what is like the chosen.

    Parameters
    ----------
    scores : float32, (batch, tokens)
    features : (batch, tokens, width)
    among, count, steps
        See `selecting.greedily`.
    gamma : float

    Returns
    -------
    bool, (batch, tokens)
    """
    low = scores.masked_fill(~among, float("inf")).amin(dim=1, keepdim=True)
    high = scores.masked_fill(~among, float("-inf")).amax(dim=1, keepdim=True)
    left = (scores - low) / (high - low).clamp(min=1e-12)
    unit = F.normalize(features.float(), dim=-1)
    likeness = (-gamma * (1 - unit @ unit.transpose(1, 2)).square()).exp()

    def suppressed(left: Tensor, best: Tensor, step: int) -> Tensor:
        return (left - row_of(likeness, best) * left.gather(1, best)).clamp(min=0)

    return greedily(left, among, count, steps, suppressed)
