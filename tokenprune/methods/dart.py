"""DART: keep a few pivots, and of the others those that duplicate them least."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import RankingConfig
from ..fields import checked, integer
from .base import Method
from .context import Context, Criterion, Selection
from .registry import register_method
from .selecting import highest, token_counts

__all__ = ["DART", "DARTConfig"]


@dataclass(frozen=True)
class DARTConfig(RankingConfig):
    """Configuration of DART (arXiv 2502.11494).

    Parameters
    ----------
    layer : int
        The decoder layer, counted from 0, after which tokens are dropped. The authors' K, 2, is one
        more: the number of layers that see every token.
    keep : int or float
        How many visual tokens of each sample stay, pivots included: an int is a number of tokens, a
        float in (0, 1] a share of the sample's own. The authors' max_num_trunction leaves out the
        visual pivots: 128 is 132 tokens.
    image_pivots, text_pivots : int
        How many pivots are visual tokens, which stay, and how many are the text's.
    norm : int
        By which norm of their keys pivots are chosen. 1: the authors' L1 norm. Rotary embedding
        changes it, so it depends on a token's position: a row that is padded on the left and called
        without ``position_ids`` may keep other tokens than alone (`generate` gives them). 2: the L2
        norm, which rotary embedding leaves as it is.
    positions : {"kept", "renumbered"}
        Which positions survivors have; see `MethodConfig`.

    Examples
    --------
    >>> tp.DARTConfig(keep=0.25).image_pivots
    4
    """

    image_pivots: int = checked(4, integer(1, 1024))
    text_pivots: int = checked(4, integer(0, 1024))
    norm: int = checked(2, integer(1, 2))


@register_method("dart", DARTConfig)
class DART(Method):
    """Keep the pivots, and for each of them the tokens least like it (arXiv 2502.11494, 3.3).

    Pivots are the visual tokens, and the tokens of the text after the last of these, whose keys
    have the largest norm over all heads. Pivot after pivot takes its share of the tokens not yet
    taken: those whose hidden states have the lowest cosine similarity with the pivot's.

    Checked by reading against xqy1111111/DART at d6a5af6, which has the authors' history
    (``llava/model/language_model/modeling_llama_self.py``). Survivors keep their positions, as the
    authors' do. It differs in six points. The authors take the L1 norm: ``norm=1``. Norms that
    differ by less than half precision tells apart count as equal, the earlier token first. They
    compare hidden states after the decoder's last norm, whose weights a method does not see. They
    take pivots in the order of a Python set, here it is that of the sequence. Their counts are the
    visual pivots and a multiple of all pivots; where `keep` is another number, the first pivots
    take one token more. Where the text after the picture is shorter than its number of pivots,
    which the authors' code does not allow, the pivots that there are take more.
    """

    needs = frozenset({"keys"})

    def select(self, context: Context) -> Selection:
        """Keep the pivots and what is least like them."""
        assert context.keys is not None  # asked for in `needs`
        visual, config = context.layout.mask, self.config
        count = token_counts(config.keep, context.layout.counts())
        norms = torch.linalg.vector_norm(context.keys.float(), ord=config.norm, dim=(1, 3))
        norms = without_rounding(norms, visual | context.prompt)
        own = count.clamp(max=config.image_pivots)
        pivots = highest(norms, visual, own)
        asked = highest(norms, after_last(visual, context.prompt), config.text_pivots)
        taken = least_like(
            context.hidden_states.detach(),
            pivots | asked,
            visual & ~pivots,
            count - own,
            min(config.image_pivots + config.text_pivots, visual.shape[1]),
        )
        return Selection(
            keep=pivots | taken,
            scores=norms,
            criteria=(
                Criterion("norm of the key, of pivots", norms, limit=own),
                Criterion("least like a pivot", met=taken),
            ),
        )


def without_rounding(norms: Tensor, among: Tensor) -> Tensor:
    """Return norms as whole steps of 1/4096 of a row's largest, so that rounding decides nothing.

    Decoders that normalise their keys give all of them one norm up to rounding, by which a batch
    and a row alone would have other pivots. The step is that of half precision, in which the
    authors run.

    Parameters
    ----------
    norms : float32, (batch, tokens)
    among : bool, (batch, tokens)
        Which norms count.

    Returns
    -------
    float32, (batch, tokens)
    """
    largest = norms.masked_fill(~among, 0).amax(dim=1, keepdim=True).clamp(min=1e-30)
    return (norms / largest * 4096).round()


def after_last(visual: Tensor, prompt: Tensor) -> Tensor:
    """Return which of the prompt's text follows the last visual token: bool, (batch, tokens).

    Parameters
    ----------
    visual, prompt : bool, (batch, tokens)
    """
    to_come = visual.long().flip(1).cumsum(dim=1).flip(1)
    return prompt & (to_come == 0)


def least_like(features: Tensor, pivots: Tensor, among: Tensor, count: Tensor, most: int) -> Tensor:
    """Choose, pivot after pivot, the tokens least like it among those not yet chosen.

    Parameters
    ----------
    features : (batch, tokens, width)
    pivots, among : bool, (batch, tokens)
        The pivots, and which tokens may be chosen.
    count : int64, (batch, 1)
        How many are, the same number for each pivot or, for the first ones, one more.
    most : int
        At least the largest number of pivots in a row.

    Returns
    -------
    bool, (batch, tokens)
    """
    unit = F.normalize(features.float(), dim=-1)
    places = pivots.long().argsort(dim=1, descending=True, stable=True)[:, :most]
    vectors = unit.gather(1, places[..., None].expand(-1, -1, unit.shape[2]))
    unlike = -(vectors @ unit.transpose(1, 2))
    number = pivots.sum(dim=1, keepdim=True).clamp(min=1)
    each = count.div(number, rounding_mode="floor")
    chosen = torch.zeros_like(among)
    for place in range(places.shape[1]):
        share = each + (place < count - each * number)
        share = torch.where(place < number, share, 0)
        chosen = chosen | highest(unlike[:, place], among & ~chosen, share)
    return chosen
