"""SparseVLM: the configuration and the rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...config import MultiLayerConfig
from ...fields import budget, checked, number, one_for_each_layer, optional
from ..base import Method
from ..context import Context, Criterion, Selection
from ..registry import register_method
from ..selecting import at_step, highest, token_counts
from .recycle import recycled, share_and_one

__all__ = ["SparseVLM", "SparseVLMConfig", "raters"]


@dataclass(frozen=True)
class SparseVLMConfig(MultiLayerConfig):
    """Configuration of SparseVLM (arXiv 2410.04417).

    Parameters
    ----------
    layers : tuple of int, optional
        Decoder layers, counted from 0, after which tokens are dropped. None: the third, seventh and
        sixteenth of 32, or the same places in proportion, as in the authors' code.
    scale : float
        λ: of the tokens beyond the rank of the raters' attention, the share that goes.
    keep : int or float, or a tuple with one for each layer, optional
        How many visual tokens of each sample stay instead, as in the authors' tables: an int is a
        number of tokens, a float in (0, 1] a share of those that the sample still has at the layer.
        None: by rank, each sample its own number.
    recycle : float
        τ: of the dropped tokens, the share with the highest scores that is clustered and merged,
        and one more. 0: none.
    clusters : float
        θ: how many clusters, as a share of the tokens that are clustered, and one more.
    positions : {"kept", "renumbered"}
        Which positions survivors have; see `MethodConfig`.
    """

    default_depths: ClassVar[tuple[float, ...]] = (3 / 32, 7 / 32, 16 / 32)

    scale: float = checked(0.5, number(above=0, most=1))
    keep: int | float | tuple[int | float, ...] | None = checked(
        None, optional(one_for_each_layer(budget))
    )
    recycle: float = checked(0.3, number(least=0, most=1))
    clusters: float = checked(0.1, number(above=0, most=1))


@register_method("sparsevlm", SparseVLMConfig)
class SparseVLM(Method):
    """Keep what the text tokens that concern the picture attend to (arXiv 2410.04417, 3).

    Text raters are chosen once, among the text behind the picture, by their similarity to the
    visual tokens before the first layer (3.2). At each layer the mean attention of the raters
    scores the tokens; λ(n − rank) of n go, the rank being that of the raters' attention (3.3). Of
    those that go, the best are clustered by density peaks and each cluster goes on as one token
    (3.4), their mean as in the authors' code (the text says sum), at the place of the cluster's
    centre; numbered anew (`positions`), as the authors run it, behind the tokens that stay. The
    rank is asked of the device once a layer.

    Checked by reading ``modelling_sparse_llama.py``, ``score.py`` and ``utils.py`` in
    ``llava/model/language_model`` of github.com/Gumpest/SparseVLMs, commit 26a5f48. Differences:
    the code has lists of counts (`keep`) where the paper goes by rank; of equal densities the
    earlier token's counts as higher, where the code adds noise; a prompt without text behind its
    last picture is rated by all of its text. Not implemented: SparseVLM+, and the query-subset
    trick by which the authors get the attention under FlashAttention; ours is computed under any
    backend.
    """

    needs = frozenset({"each"})

    def begin(self, context: Context) -> Tensor:
        """Choose the raters: bool, (batch, length)."""
        return raters(context.hidden_states, context.layout.mask, context.prompt)

    def select(self, context: Context) -> Selection:
        """Keep what the raters attend to, and recycle some of the rest."""
        config, visual = self.config, context.layout.mask
        chosen = context.memory.gather(1, context.positions) & context.prompt
        each = context.received["each"].total
        order = torch.where(context.prompt, context.prompt.long().cumsum(dim=1) - 1, each.shape[1])
        rates = each.new_zeros(each.shape[0], each.shape[1] + 1)
        rates = rates.scatter_reduce(1, order, chosen.float(), "amax")[:, :-1]
        attention = each * rates[..., None] * visual[:, None]
        scores = attention.sum(dim=1) / rates.sum(dim=1, keepdim=True).clamp(min=1)
        total = context.layout.counts()
        if config.keep is None:
            # Far above rounding, so that a rank does not hang on it, or on the padding's width.
            # NaN, which the rank does not take, is left to the engine's check of the scores.
            spare = total - torch.linalg.matrix_rank(attention.nan_to_num(), rtol=1e-3)
            count = (total - (config.scale * spare).round().long())[:, None]
        else:
            count = token_counts(at_step(config.keep, context.step), total)
        keep = highest(scores, visual, count)
        rated = Criterion("attention of the text that rates", scores, limit=count)
        if not config.recycle:
            return Selection(keep=keep, scores=scores, criteria=(rated,))
        gone = visual & ~keep
        best = share_and_one(config.recycle, gone.sum(dim=1, keepdim=True))
        worth = highest(scores, gone, best)
        centres, hidden, order = recycled(context.hidden_states, worth, config.clusters)
        merged = Criterion("centre of a merged cluster", met=centres)
        return Selection(
            keep=keep | centres,
            scores=scores,
            hidden_states=hidden,
            order=order,
            criteria=(rated, merged),
        )


def raters(embeddings: Tensor, visual: Tensor, prompt: Tensor) -> Tensor:
    """Choose the text tokens that concern the picture more than the mean text token does.

    Only text behind the last picture is asked, which has seen all there is; all of it, where none
    is above the mean.

    Parameters
    ----------
    embeddings : (batch, length, width)
        The first decoder layer's input.
    visual, prompt : bool, (batch, length)

    Returns
    -------
    bool, (batch, length)
    """
    behind = prompt & (visual.flip(1).long().cumsum(dim=1).flip(1) == 0)
    prompt = torch.where(behind.any(dim=1, keepdim=True), behind, prompt)
    states = embeddings.float()
    logits = states @ states.transpose(1, 2)
    # A row without text has nothing to share out: any finite number will do.
    shares = logits.masked_fill(~prompt[:, None], torch.finfo(torch.float32).min).softmax(dim=2)
    seen = (shares * visual[..., None]).sum(dim=1)
    mean = (seen * prompt).sum(dim=1, keepdim=True) / prompt.sum(dim=1, keepdim=True).clamp(min=1)
    above = prompt & (seen > mean)
    return torch.where(above.any(dim=1, keepdim=True), above, prompt)
