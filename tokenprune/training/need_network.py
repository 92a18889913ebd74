"""Fit the network that says whether a budget is enough for a prompt."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..methods.atp.need import Need

__all__ = ["fit_network"]

_EPOCHS = 60
_ROWS = 256  # in one step
_RATE = 2e-3
_DECAY = 0.1
_DROPOUT = 0.2
_LEAST_SPREAD = 1e-3


def fit_network(need: Need, features: Tensor, enough: Tensor, is_held: Tensor) -> None:
    """Fit the network, and keep the weights that say most of the prompts that were held.

    Parameters
    ----------
    need : Need
        With its ladder set; changed in place.
    features : float16, (budgets, prompts, features)
        As they are at each of the budgets, whose first steps differ.
    enough : bool, (prompts, budgets)
    is_held : bool, (prompts,)
        Which prompts say when to stop; if none or all are, all are fitted to.

    Raises
    ------
    ValueError
        If the loss is not finite.
    """
    if bool(is_held.all()) or not bool(is_held.any()):
        fitted = checked = torch.ones_like(is_held)
    else:
        fitted, checked = ~is_held, is_held
    device = need.mean.device
    shown, truth = features[:, fitted].to(device), enough[fitted].to(device).float()
    held, held_truth = features[:, checked].to(device), enough[checked].to(device).float()
    flat = shown.flatten(0, 1).float()
    spread = flat.std(dim=0, correction=0)
    need.mean.copy_(flat.mean(dim=0))
    # What hardly varies among these prompts says nothing, and may say anything on others.
    varies = spread > _LEAST_SPREAD
    need.scale.copy_(torch.where(varies, 1 / spread.clamp(min=_LEAST_SPREAD), 0.0))
    loss_of = nn.functional.binary_cross_entropy_with_logits
    count = shown.shape[1]
    best, best_weights = math.inf, {}
    cuda = [device] if device.type == "cuda" else []
    with torch.enable_grad(), torch.random.fork_rng(devices=cuda):
        torch.manual_seed(0)  # any number of ranks finds the same
        weights = need.drawn()
        optimiser = torch.optim.AdamW(weights.values(), lr=_RATE, weight_decay=_DECAY)
        steps = _EPOCHS * math.ceil(count / _ROWS)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _RATE, total_steps=steps)
        for _ in range(_EPOCHS):
            order = torch.randperm(count)
            for chosen in order.split(_ROWS):
                # As they are at one of the budgets: at inference it may be any.
                at = torch.randint(len(shown), (len(chosen),))
                batch = shown[at.to(device), chosen.to(device)].float()
                logits = functional_call(need, weights, (batch, _DROPOUT))
                loss = loss_of(logits, truth[chosen.to(device)])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
            with torch.no_grad():
                logits = functional_call(need, weights, (held[len(held) // 2].float(),))
                found = float(loss_of(logits, held_truth))
            if found < best:
                best = found
                best_weights = {name: value.detach().clone() for name, value in weights.items()}
    if not best_weights:
        raise ValueError(
            "What prompts need cannot be fitted: the loss is not finite, so the hidden states of "
            "these prompts are not. Use a precision in which the model does not overflow."
        )
    need.load_state_dict({**need.state_dict(), **best_weights})
