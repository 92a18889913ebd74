"""A learned ranking: which tokens the prompt will attend to in the layers to come."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..context import Context
from .heads import Affine
from .states import prompt_states, scaled

__all__ = ["LearnedRanking", "RankingInputs", "reweighted"]

_WIDTH = 48
_QUERY = 64
_LEAST_SHARE = 1e-4  # of the mean: below, a token receives no attention worth telling apart


class RankingInputs(NamedTuple):
    """What a learned ranking reads at a step.

    Attributes
    ----------
    tokens : (batch, tokens, hidden_size + 4)
        Hidden state, log shares of S_self and S_cross, row and column; zeros at text and padding.
    prompt : (batch, 2·hidden_size)
        The state of the prompt's last token and the mean over its text.
    """

    tokens: Tensor
    prompt: Tensor

    @classmethod
    def of(cls, context: Context, maps: Tensor) -> RankingInputs:
        """Read them, in float32 and without gradient through the states.

        Parameters
        ----------
        context : Context
        maps : float32, (2, batch, tokens)
            S_self and S_cross.
        """
        layout, weight = context.layout, context.weight
        shares = maps * weight.sum(dim=1, keepdim=True)
        logs = torch.where(layout.mask, shares, 1.0).clamp(min=_LEAST_SHARE).log()
        placed = layout.row >= 0
        row = torch.where(placed, (layout.row + 0.5) / layout.height.clamp(min=1), 0.5)
        col = torch.where(placed, (layout.col + 0.5) / layout.width.clamp(min=1), 0.5)
        others = torch.stack([*logs, row, col], dim=-1).float()
        others = torch.where(layout.mask.unsqueeze(-1), others, 0.0)
        states = scaled(context.hidden_states, layout.mask)
        return cls(torch.cat([states, others], dim=-1), prompt_states(context))


class LearnedRanking(nn.Module):
    """A residual on the logarithm of each token's redundant score, zero until it is fitted.

    Hidden state, log shares of the two score maps and place → 48 → 1, and the product of a key of
    the same with a query of the prompt's states (64 wide), in float32. Not in the paper, which
    ranks by attention alone.

    Parameters
    ----------
    hidden_size : int
        Width of the decoder's hidden states.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.project = Affine(hidden_size + 4, _WIDTH + _QUERY)
        self.query = Affine(2 * hidden_size, _QUERY)
        self.score = Affine(_WIDTH, 1)
        for last in (self.query, self.score):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, inputs: RankingInputs) -> Tensor:
        """Compute what is added to log S_r: float32, (batch, tokens)."""
        inner, keys = self.project(inputs.tokens).split((_WIDTH, _QUERY), dim=-1)
        alone = self.score(nn.functional.gelu(inner)).squeeze(-1)
        query = self.query(inputs.prompt).unsqueeze(-1)
        return alone + (keys @ query).squeeze(-1) / math.sqrt(_QUERY)


def reweighted(score: Tensor, residual: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
    """Multiply scores by exp(residual), their sum over what is still there being kept.

    Parameters
    ----------
    score, residual, weight : float32, (batch, tokens)
        Raw scores, 0 or more; what a learned ranking adds to their logarithms; how much of each
        token is there.
    mask : bool, (batch, tokens)
        Visual tokens. Others keep their scores.

    Returns
    -------
    Tensor
        float32, (batch, tokens); the scores as they are where all residuals are 0.
    """
    # An infinite one would pass as a token that always stays, or never.
    residual = torch.where(residual.isfinite(), residual, torch.nan)
    # Subtracted so that nothing overflows: the ratio below does not change with it.
    highest = torch.where(mask, residual, -torch.inf).amax(dim=1, keepdim=True).detach()
    changed = score * torch.where(mask, residual - highest, 0.0).exp()
    total = torch.where(mask, score * weight, 0.0).sum(dim=1, keepdim=True)
    found = torch.where(mask, changed * weight, 0.0).sum(dim=1, keepdim=True)
    ratio = total / torch.where(found == 0, 1.0, found)
    return torch.where(mask, changed * ratio, score)
