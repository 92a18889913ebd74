"""CDPruner: keep the tokens that differ most from each other, weighted by the instruction."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import RankingConfig
from ..fields import BEFORE_DECODER, boolean, checked, layer_number, number, optional
from .base import Method
from .context import Context, Criterion, Selection
from .registry import register_method
from .selecting import greedily, max_count, row_of, token_counts

__all__ = ["CDPruner", "CDPrunerConfig"]

# What is left of a token outside the span of those taken, as a share of its squared length, below
# which it is rounding.
_NOTHING_NEW = 1e-5


@dataclass(frozen=True)
class CDPrunerConfig(RankingConfig):
    """Configuration of CDPruner (arXiv 2506.10967).

    Parameters
    ----------
    layer : int
        The decoder layer, counted from 0, after which tokens are dropped; -1 (`BEFORE_DECODER`),
        as in the paper: before the first.
    keep : int or float
        How many visual tokens of each sample stay: an int is a number of tokens, a float in (0, 1]
        a share of the sample's own.
    negated : bool
        Whether the tokens that are least like the prompt's text count as the most relevant. True:
        the authors' code negates the similarities of CLIP's two towers, and openvino_contrib those
        with the decoder's text embeddings. False: the paper's equation, and OpenVINO GenAI for
        towers other than CLIP's.
    theta : float, optional
        Weight of relevance against diversity, from 0 (diversity alone): relevance r, in [0, 1],
        becomes exp(r·θ / (2·(1 − θ))). None: r as it is, which the authors run. OpenVINO GenAI's
        ``relevance_weight``, there 0.5.
    positions : {"kept", "renumbered"}
        Which positions survivors have; see `MethodConfig`.

    Examples
    --------
    >>> config = tp.CDPrunerConfig(keep=64)
    >>> config.layer, config.theta
    (-1, None)
    """

    layer: int = checked(BEFORE_DECODER, layer_number(BEFORE_DECODER))
    negated: bool = checked(True, boolean)
    # At most 0.95, so that the kernel stays finite: exp(2 · 9.5).
    theta: float | None = checked(None, optional(number(least=0, most=0.95)))


@register_method("cdpruner", CDPrunerConfig)
class CDPruner(Method):
    """Keep the most diverse set, given the instruction (arXiv 2506.10967, Eqs. 4 to 8).

    A determinantal point process over a sample's visual tokens with the kernel r_i · S_ij · r_j,
    where S is the cosine similarity of their hidden states and r their relevance to the prompt,
    stretched to [0, 1]. The set of the largest determinant is approximated as the authors do:
    greedily, each token being the one with the most left outside the span of those taken.

    Checked by reading against Theia-4869/CDPruner at 9541616. It differs in three points. The
    authors compute relevance in the space of CLIP's two towers, from the question alone. Models
    here have no text tower, so relevance is the mean cosine similarity with the embeddings of the
    prompt's text, as in openvino_contrib (``genai_opt/visual_token_pruning.py`` at 98c5fe8).
    The authors keep the same number in each picture and each crop; here one set is chosen from all
    of a sample's. Where the tokens taken span all others up to rounding, which the authors' code
    does not provide for, the most relevant follow. The authors number survivors anew.
    """

    def select(self, context: Context) -> Selection:
        """Keep the set with the largest determinant, by the greedy rule."""
        visual = context.layout.mask
        count = token_counts(self.config.keep, context.layout.counts())
        steps = max_count(self.config.keep, visual.shape[1])
        # Without gradient: rows of the factor, written in place, would keep their own graph alive.
        unit = F.normalize(context.hidden_states.detach().float(), dim=-1)
        likeness = likeness_to(unit, context.prompt)
        scores = stretched(-likeness if self.config.negated else likeness, visual)
        weight = scores
        if (theta := self.config.theta) is not None:
            weight = (theta / (2 * (1 - theta)) * scores).exp()
        similarity = unit @ unit.transpose(1, 2)
        # With equal weights the first token is decided by the diagonal: not by its rounding.
        similarity.diagonal(dim1=1, dim2=2).fill_(1.0)
        kernel = weight[:, :, None] * similarity * weight[:, None]
        keep = largest_determinant(kernel, scores, visual, count, steps)
        taken = Criterion("relevance times what is new in it", scores, met=keep)
        return Selection(keep=keep, scores=scores, criteria=(taken,))


def likeness_to(unit: Tensor, text: Tensor) -> Tensor:
    """Return each token's mean cosine similarity with some text; 0 where there is none.

    Parameters
    ----------
    unit : float32, (batch, tokens, width)
        Vectors of length 1.
    text : bool, (batch, tokens)

    Returns
    -------
    float32, (batch, tokens)
    """
    total = torch.where(text[..., None], unit, 0.0).sum(dim=1, keepdim=True)
    return (unit @ total.transpose(1, 2))[..., 0] / text.sum(dim=1, keepdim=True).clamp(min=1)


def stretched(values: Tensor, among: Tensor) -> Tensor:
    """Stretch values to [0, 1], the least to a little above 0; equal ones to 1.

    Parameters
    ----------
    values : float32, (batch, tokens)
    among : bool, (batch, tokens)
        Which values count.

    Returns
    -------
    float32, (batch, tokens)
    """
    low = values.masked_fill(~among, float("inf")).amin(dim=1, keepdim=True)
    high = values.masked_fill(~among, float("-inf")).amax(dim=1, keepdim=True)
    return (values - low + 1e-6) / (high - low).clamp(min=1e-6)


def largest_determinant(
    kernel: Tensor, scores: Tensor, among: Tensor, count: Tensor, steps: int
) -> Tensor:
    """Choose greedily the tokens whose kernel has the largest determinant (arXiv 1709.05135).

    Parameters
    ----------
    kernel : float32, (batch, tokens, tokens)
        Positive semi-definite among the tokens that may be chosen.
    scores : float32, (batch, tokens)
        In [0, 1]: by what tokens are chosen once none adds to the determinant.
    among, count, steps
        See `selecting.greedily`.

    Returns
    -------
    bool, (batch, tokens)
    """
    batch, tokens = scores.shape
    length = kernel.diagonal(dim1=1, dim2=2)
    left = length.clone()
    rows = kernel.new_zeros(batch, steps, tokens)  # of the Cholesky factor, one a chosen token

    def gain() -> Tensor:
        return torch.where(left > _NOTHING_NEW * length, left, scores - 2)

    def taken(gains: Tensor, best: Tensor, step: int) -> Tensor:
        nonlocal left
        new = gains.gather(1, best)
        known = rows[:, :step]
        at_best = known.gather(2, best[:, None].expand(-1, step, 1))
        row = (row_of(kernel, best) - (known * at_best).sum(dim=1)) / new.clamp(min=0).sqrt()
        rows[:, step] = row = torch.where(new > 0, row, 0.0)
        left = left - row.square()
        return gain()

    return greedily(gain(), among, count, steps, taken)
