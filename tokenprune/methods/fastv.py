"""FastV: drop once, by the attention of the prompt's last token."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..config import RankingConfig
from ..fields import budget, checked
from .context import Context
from .ranking import RankingMethod
from .registry import register_method

__all__ = ["FastV", "FastVConfig"]


@dataclass(frozen=True)
class FastVConfig(RankingConfig):
    """Configuration of FastV (arXiv 2403.06764).

    Parameters
    ----------
    layer : int
        The decoder layer, counted from 0, after which tokens are dropped. The paper's K is one
        more: the number of layers that see every token.
    keep : int or float
        How many visual tokens of each sample stay: an int is a number of tokens, a float in (0, 1]
        a share of the sample's own. The paper's R is the share that goes.
    positions : {"kept", "renumbered"}
        Which positions survivors have; see `MethodConfig`.

    Examples
    --------
    >>> tp.FastVConfig(layer=1, keep=72)
    FastVConfig(positions='kept', layer=1, keep=72)
    """

    keep: int | float = checked(0.5, budget)


@register_method("fastv", FastVConfig)
class FastV(RankingMethod):
    """Keep the visual tokens to which the prompt's last token attends most (arXiv 2403.06764, 3.2).

    The attention is that of the layer just run, mean over its heads. Not implemented: the authors'
    variant that masks tokens but computes on; here they are dropped and leave the cache.
    """

    needs = frozenset({"last"})
    score_name = "attention of the prompt's last token"

    def score(self, context: Context) -> Tensor:
        """Return the attention received from the prompt's last token."""
        return context.received["last"].total
