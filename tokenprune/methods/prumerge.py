"""LLaVA-PruMerge and PruMerge+: an adaptive number of tokens, and the rest merged into them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..config import PreDecoderConfig
from ..fields import MAX_TOKENS, boolean, budget, checked, integer, optional
from .base import Method
from .context import Context, Criterion, Selection
from .registry import register_method
from .selecting import evenly, highest, token_counts

__all__ = ["PruMerge", "PruMergeConfig", "outliers"]


@dataclass(frozen=True)
class PruMergeConfig(PreDecoderConfig):
    """Configuration of LLaVA-PruMerge (arXiv 2403.15388).

    Parameters
    ----------
    plus : bool
        PruMerge+: three evenly spaced tokens for each that stands out.
    keep : int or float, optional
        How many visual tokens of each sample stay: an int is a number of tokens, a float in (0, 1]
        a share of the sample's own; with `plus` those that stand out are a quarter of it. None: as
        many as stand out, each sample its own number.
    neighbours : int
        How many of the dropped tokens are merged into each that stays; the authors' 32.
    """

    plus: bool = checked(False, boolean)
    keep: int | float | None = checked(None, optional(budget))
    neighbours: int = checked(32, integer(0, MAX_TOKENS))


@register_method("prumerge", PruMergeConfig)
class PruMerge(Method):
    """Keep the tokens that stand out for the class token, and merge their like into them.

    arXiv 2403.15388, 3.2 to 3.4, before the decoder. A token stands out if the class token's
    attention to it, in the tower's last layer, lies more than 1.5 interquartile ranges above the
    third quartile. To each that stays its nearest dropped tokens by key similarity are added,
    weighted by the class token's attention, as in the authors' code. Attention is the mean over the
    heads of each head's softmax, and projected features are merged; the authors multiply whole
    queries and keys, and merge before the projector. Not implemented: fine-tuning with it.
    """

    tower_layer = -1  # the last

    def select(self, context: Context) -> Selection:
        """Keep the tokens that stand out, and merge dropped ones into them."""
        assert context.tower is not None
        config, visual = self.config, context.layout.mask
        attention = context.tower.attention
        total = context.layout.counts()
        if config.keep is None:
            best = outliers(attention, visual).sum(dim=1, keepdim=True).clamp(min=1)
            best, more = best.minimum(total[:, None]), 3 * best
        else:
            count = token_counts(config.keep, total)
            best = (count / 4).round().long().clamp(min=1) if config.plus else count
            more = count - best
        keep = highest(attention, visual, best)
        criteria = [Criterion("attention of the class token", attention, limit=best)]
        if config.plus:
            spaced = evenly(visual & ~keep, more)
            criteria.append(Criterion("one of those spaced evenly", met=spaced))
            keep = keep | spaced
        gone = visual & ~keep

        keys = F.normalize(rearrange(context.tower.keys, "b t h d -> b t (h d)"), dim=-1)
        likeness = (keys @ keys.transpose(1, 2)).masked_fill(~gone[:, None], float("-inf"))
        near = likeness.topk(min(config.neighbours, visual.shape[1]), dim=2)
        # With fewer dropped tokens than neighbours the last ones are none.
        share = attention[:, None].expand_as(likeness).gather(2, near.indices)
        share = torch.where(near.values.isfinite(), share, 0)
        weight = torch.zeros_like(likeness).scatter_add(2, near.indices, share)
        states = context.hidden_states.float()
        # The weights are 0 at all others, whose states may be NaN where they are padding.
        added = weight @ torch.where(gone[..., None], states, 0.0)
        merged = (states + added).to(context.hidden_states.dtype)
        hidden = torch.where(keep[..., None], merged, context.hidden_states)
        return Selection(
            keep=keep, scores=attention, hidden_states=hidden, criteria=tuple(criteria)
        )


def outliers(scores: Tensor, among: Tensor) -> Tensor:
    """Return which scores lie more than 1.5 interquartile ranges above the third quartile.

    Parameters
    ----------
    scores : float32, (batch, tokens)
    among : bool, (batch, tokens)
        Those that the quartiles are of.

    Returns
    -------
    bool, (batch, tokens)
    """
    values = scores.masked_fill(~among, float("nan"))
    quarters = scores.new_tensor([0.25, 0.75])
    low, high = values.nanquantile(quarters, dim=1, keepdim=True)
    return among & (scores > high + 1.5 * (high - low))
