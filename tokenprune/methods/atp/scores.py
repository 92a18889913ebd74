"""Scores from the attention that each visual token receives."""

from __future__ import annotations

import torch
from torch import Tensor

from ..context import Received

__all__ = ["cross_score", "normalise", "redundant_score", "self_score", "text_score"]


def self_score(visual: Received, averaging: str) -> Tensor:
    """Compute S_self: attention received from visual tokens, float32, (batch, tokens).

    With ``"all"`` the mean is over every visual query, which favours early tokens: under the causal
    rule token j is seen only by queries i ≥ j. With ``"visible"`` it is over those.
    """
    return visual.mean_visible() if averaging == "visible" else visual.mean_all()


def cross_score(prompt: Received) -> Tensor:
    """Compute S_cross: attention received from the prompt text that can see the token.

    0 where no text can: float32, (batch, tokens).
    """
    return prompt.mean_visible()


def redundant_score(
    self_map: Tensor, cross_map: Tensor, prompt: Received, sources: tuple[str, ...]
) -> Tensor:
    """Compute S_r = (S_self + S_cross) / 2, or one of them: float32, (batch, tokens).

    A token that no prompt text can see has no cross score: its self score stands alone.
    """
    if sources == ("self",):
        return self_map
    if sources == ("cross",):
        return cross_map
    return torch.where(prompt.seen_by > 0, (self_map + cross_map) / 2, self_map)


def normalise(score: Tensor, weight: Tensor, how: str) -> Tensor:
    """Scale raw attention, near 1/n, to where a sigmoid's threshold can work.

    Parameters
    ----------
    score : float32, (..., batch, tokens)
        0 or more.
    weight : float32, (batch, tokens)
        How much of each visual token is still there, 0 at everything else.
    how : {"share", "mass", "minmax", "none"}
    """
    if how == "none":
        return score
    if how == "share":
        x = score * weight.sum(dim=1, keepdim=True)
        return x / (1 + x)
    if how == "mass":
        return _mass_below(score, weight)
    there = weight > 0.5
    low = score.masked_fill(~there, torch.inf).amin(dim=-1, keepdim=True)
    high = score.masked_fill(~there, -torch.inf).amax(dim=-1, keepdim=True)
    stretched = (score - low) / (high - low).clamp(min=1e-12)
    # Rows without visual tokens have no range; NaN scores stay NaN, to be reported.
    return torch.where(low.isinf(), 0.0, stretched).clamp(0, 1)


def _mass_below(score: Tensor, weight: Tensor) -> Tensor:
    """Return which share of all scores each token and those below it have together.

    Of equal ones the earlier counts as the higher.
    """
    # Nothing is added by what is gone.
    falling, order = score.masked_fill(weight <= 0, -1.0).sort(dim=-1, descending=True, stable=True)
    parts = falling.clamp(min=0) * weight.expand_as(score).gather(-1, order)
    sums = parts.flip(-1).cumsum(dim=-1).flip(-1)
    total = sums[..., :1]
    shares = sums / torch.where(total == 0, 1.0, total)
    return torch.zeros_like(score).scatter(-1, order, shares)


def text_score(prompt: Received, text: Tensor) -> Tensor:
    """Compute how much attention each text token receives from the text, 0.5 at the mean.

    x / (1 + x), x being a multiple of the mean over `text`: begin tokens and other sinks, which are
    not in it, do not drown the rest. Not in the paper. float32, (batch, tokens).

    Parameters
    ----------
    text : bool, (batch, tokens)
        The tokens that may go. The values of others do not matter.
    """
    received = torch.where(text, prompt.mean_visible(), 0.0)
    mean = received.sum(dim=1, keepdim=True) / text.sum(dim=1, keepdim=True).clamp(min=1)
    x = received / mean.clamp(min=1e-12)
    return x / (1 + x)
