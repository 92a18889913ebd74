"""The base class of methods that keep the tokens with the highest scores."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from ..config import RankingConfig
from .base import Method
from .context import Context, Criterion, Selection
from .selecting import at_step, highest, token_counts

__all__ = ["RankingMethod"]


class RankingMethod(Method):
    """A method that keeps the tokens with the highest scores.

    A subclass defines `score`, and names in `needs` what that reads; `score_name` is what
    `tokenprune.explain` calls it. Registered without a
    configuration, it gets its own subclass of `tokenprune.RankingConfig` as ``Config``. A
    configuration of its own has a field ``keep``.

    Parameters
    ----------
    config : MethodConfig, optional
        None: the default one, ``Config()``.

    Examples
    --------
    >>> @tp.register_method("hidden_norm")
    ... class HiddenNorm(tp.RankingMethod):
    ...     def score(self, context):
    ...         return context.hidden_states.norm(dim=-1)
    >>> HiddenNorm.Config(layer=2, keep=64).to_dict()
    {'method': 'hidden_norm', 'positions': 'kept', 'layer': 2, 'keep': 64}
    """

    Config: ClassVar[Any] = RankingConfig
    score_name: ClassVar[str] = "score"

    def score(self, context: Context) -> Tensor:
        """Return how much each token matters.

        Returns
        -------
        float, (batch, tokens)
            Higher stays. Values at text and padding do not matter; NaN at a visual token stops the
            forward pass with an error.
        """
        raise TypeError(f"{type(self).__name__} does not define score.")

    def counts(self, context: Context) -> Tensor:
        """Return how many visual tokens each row keeps: (batch, 1), by the configuration's `keep`.

        A share is of the tokens that the row still has at this step.
        """
        keep = at_step(self.config.keep, context.step)
        return token_counts(keep, context.layout.counts())

    def select(self, context: Context) -> Selection:
        """Keep the highest scores; of equal ones, the earlier token.

        Raises
        ------
        ValueError
            If `score` returns another shape than (batch, tokens).
        """
        visual = context.layout.mask
        scores = self.score(context)
        if scores.shape != visual.shape:
            raise ValueError(
                f"{type(self).__name__}.score returned the shape {tuple(scores.shape)}: expected "
                f"(batch, tokens), which is {tuple(visual.shape)} here."
            )
        counts = self.counts(context)
        return Selection(
            keep=highest(scores, visual, counts),
            scores=scores,
            criteria=(Criterion(self.score_name, scores, limit=counts),),
        )
