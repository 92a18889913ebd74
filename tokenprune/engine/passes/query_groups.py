"""The groups of queries whose attention a method can ask for."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["query_group"]


def query_group(name: str, weight: Tensor, prompt: Tensor) -> Tensor:
    """Return how much each query counts in a group.

    Parameters
    ----------
    name : {"visual", "prompt", "last", "each"}
        See `Method.needs`.
    weight : float32, (batch, tokens)
        How much of each visual token is there, 0 at text.
    prompt : bool, (batch, tokens)
        The text of the prompt.

    Returns
    -------
    float32, (batch, groups, tokens)
        One group, but "each": as many as the row with most text has, empty ones behind.
    """
    if name == "visual":
        return weight[:, None]
    if name == "prompt":
        return prompt.float()[:, None]
    positions = torch.arange(prompt.shape[1], device=prompt.device)
    if name == "last":
        # A prompt without text is read off its last token, as a next word is.
        candidates = torch.where(prompt.any(dim=1, keepdim=True), prompt, weight > 0)
        last = torch.where(candidates, positions, -1).amax(dim=1, keepdim=True)
        return (positions == last).float()[:, None]
    order = prompt.long().cumsum(dim=1) - 1
    most = int(prompt.sum(dim=1).max())
    each = torch.arange(most, device=prompt.device)[:, None]
    return (prompt[:, None] & (order[:, None] == each)).float()
