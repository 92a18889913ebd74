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
from .selecting import highest, token_counts

__all__ = ["PruMerge", "PruMergeConfig", "outliers"]


@dataclass(frozen=True)
class PruMergeConfig(PreDecoderConfig):
    """Configuration of LLaVA-PruMerge (arXiv 2403.15388).

    Parameters
    ----------
    plus : bool
        PruMerge+: evenly spaced tokens beside those that stand out.
    keep : int or float, optional
        How many visual tokens of each sample stay, the one that the dropped become among them: an
        int is a number of tokens, a float in (0, 1] a share of the sample's own; with `plus` half
        of them stand out. None, as in the authors' code: as many as stand out, each sample its own
        number, and one.
    neighbours : int
        How many of the other tokens are added to each that stays; the authors' 32.
    positions : {"kept", "renumbered"}
        Which positions survivors have; see `MethodConfig`.
    """

    plus: bool = checked(False, boolean)
    keep: int | float | None = checked(None, optional(budget))
    neighbours: int = checked(32, integer(0, MAX_TOKENS))


@register_method("prumerge", PruMergeConfig)
class PruMerge(Method):
    """Keep the tokens that stand out for the class token, and merge their like into them.

    arXiv 2403.15388, 3.2 to 3.4, before the decoder. A token stands out if the class token's
    attention to it, in the tower's last layer and without heads, lies more than 1.5 interquartile
    ranges above the third quartile. PruMerge+ adds three evenly spaced tokens for each of these, in
    steps over all tokens, so that fewer are new. To each that stays its nearest by key similarity
    are added, whether they stay or go, weighted by the class token's attention. All that go, so
    weighted, are summed to one more token, at the place of the last of them. Numbered anew
    (`positions`), as the authors run it, tokens stand in the order of their attention, then spaced
    ones, then the sum.

    Checked by reading `token_prune_merge_advanced` and `…_plus` in
    ``llava/model/multimodal_encoder/clip_encoder.py`` of github.com/42Shawn/LLaVA-PruMerge, commit
    097c041. Differences: projected features are merged, where the authors merge before the
    projector; a sample's images are decided on together; where nothing is dropped no sum is
    appended, where the authors append zeros; where none stands out the highest does, and where more
    than a third do PruMerge+ takes steps of one, where the authors' code fails; with `keep` and
    `plus` a spaced token that stands out already makes room for the next by attention, where the
    authors' code for training, half and half, has it twice. Not implemented: fine-tuning with it.
    """

    tower_layer = -1  # the last

    def select(self, context: Context) -> Selection:
        """Keep the tokens that stand out, and merge others into them."""
        assert context.tower is not None
        visual, attention = context.layout.mask, context.tower.whole_attention
        stands_out, spaced, instead = self._chosen(attention, visual)
        keep = stands_out | spaced | instead
        gone = visual & ~keep
        places = torch.arange(visual.shape[1], device=visual.device)
        # The slot of what the dropped become.
        last = gone & (places == torch.where(gone, places, -1).amax(dim=1, keepdim=True))

        keys = F.normalize(rearrange(context.tower.keys, "b t h d -> b t (h d)"), dim=-1)
        itself = places == places[:, None]
        likeness = (keys @ keys.transpose(1, 2)).masked_fill(
            itself | ~visual[:, None], float("-inf")
        )
        near = likeness.topk(min(self.config.neighbours, visual.shape[1]), dim=2)
        # With fewer others than neighbours the last ones are none.
        share = attention[:, None].expand_as(likeness).gather(2, near.indices)
        share = torch.where(near.values.isfinite(), share, 0)
        weight = torch.zeros_like(likeness).scatter_add(2, near.indices, share)
        # The weights are 0 at all others, whose states may be NaN where they are padding.
        states = torch.where(visual[..., None], context.hidden_states.float(), 0.0)
        merged = states + weight @ states
        rest = (torch.where(gone, attention, 0.0)[:, None] @ states).expand_as(states)
        merged = torch.where(last[..., None], rest, merged).to(context.hidden_states.dtype)
        stays = keep | last
        order = torch.where(stands_out, -attention, (places + 1.0).expand_as(attention))
        named = {
            "attention of the class token stands out": stands_out,
            "one of those spaced evenly": spaced,
            "next by attention, for a spaced one that stands out too": instead,
            "place of the sum of the dropped": last,
        }
        return Selection(
            keep=stays,
            scores=attention,
            hidden_states=torch.where(stays[..., None], merged, context.hidden_states),
            order=order.masked_fill(last, float("inf")),
            criteria=tuple(Criterion(name, met=met) for name, met in named.items()),
        )

    def _chosen(self, attention: Tensor, visual: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return which stand out, which are spaced and which come for those that are both.

        Returns
        -------
        stands_out, spaced, instead : bool, (batch, tokens)
        """
        config, total = self.config, visual.sum(dim=1)
        none = torch.zeros_like(visual)
        if config.keep is None:
            best = outliers(attention, visual).sum(dim=1, keepdim=True).clamp(min=1)
            stands_out = highest(attention, visual, best)
            if not config.plus:
                return stands_out, none, none
            step = _step(best, total).div(3, rounding_mode="floor")
            return stands_out, _spaced(visual, step), none
        count = token_counts(config.keep, total)
        # Where any go, one of the slots is for what they become.
        count = torch.where(count < total[:, None], count - 1, count)
        best = count.div(2, rounding_mode="floor") if config.plus else count
        stands_out = highest(attention, visual, best)
        if not config.plus:
            return stands_out, none, none
        step = _step(best, total)
        spaced = _spaced(visual, step, first=step.div(2, rounding_mode="floor"))
        spaced = spaced & (spaced.cumsum(dim=1) <= count - best)
        keep = stands_out | spaced
        more = count - keep.sum(dim=1, keepdim=True)
        return stands_out, spaced, highest(attention, visual & ~keep, more)


def _step(best: Tensor, total: Tensor) -> Tensor:
    """Return the whole number below the tokens for each that stands out: int64, (batch, 1)."""
    # As the authors divide, twice, in double precision.
    ratio = best.double() / total[:, None].clamp(min=1)
    return (1 / ratio.clamp(min=1e-9)).long()


def _spaced(visual: Tensor, step: Tensor, first: Tensor | int = 0) -> Tensor:
    """Return every step-th visual token but the very last: bool, (batch, tokens)."""
    order = visual.long().cumsum(dim=1) - 1 - first
    inside = (order >= 0) & (order + first < visual.sum(dim=1, keepdim=True) - 1)
    return visual & inside & (order % step.clamp(min=1) == 0)


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
