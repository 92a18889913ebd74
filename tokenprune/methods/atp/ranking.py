"""A learned ranking: what a token's hidden state adds to its redundant score."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...layout import VisualLayout
from .heads import Affine

__all__ = ["LearnedRanking"]

_WIDTH = 48
_LEAST_SHARE = 1e-4  # of the mean: below, a token receives no attention worth telling apart


class LearnedRanking(nn.Module):
    """A residual on the redundant score of each token, zero until it is trained.

    Hidden state, log shares of the two score maps and place → 48 → 1, in float32. Not in the paper,
    which ranks by attention alone.

    Parameters
    ----------
    hidden_size : int
        Width of the decoder's hidden states.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.project = Affine(hidden_size + 4, _WIDTH)
        self.score = Affine(_WIDTH, 1)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)

    def forward(
        self, hidden_states: Tensor, maps: Tensor, weight: Tensor, layout: VisualLayout
    ) -> Tensor:
        """Compute what is added to S_r; 0 at text and padding.

        Parameters
        ----------
        hidden_states : Tensor, (batch, tokens, hidden_size)
            Read without gradient, as the attention is: the backbone is not taught by its ranking.
        maps : float32, (2, batch, tokens)
            S_self and S_cross.
        weight : float32, (batch, tokens)
            As in `Context`.
        layout : VisualLayout

        Returns
        -------
        Tensor
            float32, (batch, tokens).
        """
        # What stands at text and padding may be NaN, whose gradient is NaN even times zero.
        there = layout.mask.unsqueeze(-1)
        hidden = torch.where(there, hidden_states.detach(), 0.0).to(self.project.weight)
        # Scaled to a mean square of 1, whatever the depth; states grow through the decoder.
        hidden = nn.functional.rms_norm(hidden, hidden.shape[-1:], eps=1e-6)
        shares = maps * weight.sum(dim=1, keepdim=True)
        logs = torch.where(layout.mask, shares, 1.0).clamp(min=_LEAST_SHARE).log()
        placed = layout.row >= 0
        row = torch.where(placed, (layout.row + 0.5) / layout.height.clamp(min=1), 0.5)
        col = torch.where(placed, (layout.col + 0.5) / layout.width.clamp(min=1), 0.5)
        others = torch.stack([*logs, row, col], dim=-1).to(hidden)
        inner = nn.functional.gelu(self.project(torch.cat([hidden, others], dim=-1)))
        residual = self.score(inner).squeeze(-1).to(maps)
        # An infinite one would pass as a token that always stays, or never.
        residual = torch.where(residual.isfinite(), residual, torch.nan)
        return torch.where(layout.mask, residual, 0.0)
