"""Hidden states as the learned parts of ATP read them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..context import Context

__all__ = ["prompt_states", "scaled"]


def scaled(states: Tensor, there: Tensor) -> Tensor:
    """Scale each state to a mean square of 1, without gradient; zeros where there is none.

    States grow through the decoder; the backbone is not taught by what reads it.

    Parameters
    ----------
    states : Tensor, (batch, tokens, hidden_size)
    there : bool, (batch, tokens)
        What stands elsewhere may be NaN, whose gradient is NaN even times zero.

    Returns
    -------
    Tensor
        float32, (batch, tokens, hidden_size).
    """
    states = torch.where(there.unsqueeze(-1), states.detach().float(), 0.0)
    return nn.functional.rms_norm(states, states.shape[-1:], eps=1e-6)


def prompt_states(context: Context) -> Tensor:
    """Read the state of the prompt's last token, and the mean over its text.

    Returns
    -------
    Tensor
        float32, (batch, 2·hidden_size); zeros for a prompt without text.
    """
    prompt = context.prompt
    states = scaled(context.hidden_states, prompt)
    last = torch.where(prompt, context.positions, -1).argmax(dim=1)
    last_state = states[torch.arange(len(states), device=states.device), last]
    mean_state = states.sum(dim=1) / prompt.sum(dim=1, keepdim=True).clamp(min=1)
    return torch.cat([last_state, mean_state], dim=1)
