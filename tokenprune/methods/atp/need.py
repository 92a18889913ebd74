"""Need: how many tokens a prompt needs, read from the prompt and the score maps."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ..context import Context
from .scores import normalise
from .states import prompt_states

__all__ = ["Need", "feature_count", "features_of"]

_WIDTHS = (128, 64)
_QUANTILES = 16  # of each sorted score map, so that any number of tokens is read alike


def feature_count(hidden_size: int) -> int:
    """Return how many features `features_of` reads."""
    return 2 * hidden_size + 2 * _QUANTILES + 1


def features_of(context: Context, self_map: Tensor, cross_map: Tensor) -> Tensor:
    """Read what tells how many tokens a prompt needs, without gradient.

    The hidden state of the prompt's last token and the mean over its text, each scaled to a mean
    square of 1; quantiles of both score maps, as shares; and the log of how many visual tokens are
    left. Zeros stand for text or visual tokens that a row does not have.

    Parameters
    ----------
    context : Context
        At the step where need is read.
    self_map, cross_map : float32, (batch, tokens)
        S_self and S_cross.

    Returns
    -------
    Tensor
        float32, (batch, `feature_count`).
    """
    weight = context.weight
    maps = normalise(torch.stack([self_map, cross_map]), weight, "share").detach()
    there = context.layout.mask & (weight > 0.5)
    count = there.sum(dim=1)
    ordered = maps.masked_fill(~there, torch.inf).sort(dim=-1).values
    # Places of the quantiles among those that are there, the smallest and the largest included.
    steps = torch.linspace(0, 1, _QUANTILES, device=maps.device)
    places = (steps * (count - 1).clamp(min=0)[:, None]).round().long()
    quantiles = ordered.gather(-1, places.expand(len(maps), -1, -1))
    quantiles = torch.where((count > 0)[:, None], quantiles, 0.0)
    log_count = count.clamp(min=1).float().log()[:, None]
    return torch.cat([prompt_states(context), *quantiles, log_count], dim=1)


class Need(nn.Module):
    """P(enough | budget, features): whether a budget leaves a prompt's answer as it is.

    A row's need is taken as logistic in the logarithm of the budget: features → 128 → 64 → the
    need's location and width, so that more tokens are never less likely to be enough, and any
    budgets can be asked about. Not in the paper.

    The weights are buffers: they move and are saved with the heads, and no optimiser of the heads
    changes them; `tokenprune.fit_need` does.

    Parameters
    ----------
    hidden_size : int
        Width of the decoder's hidden states.
    step : int
        The pruning step at which it is read.

    Attributes
    ----------
    mean, scale : float32, (features,)
        What features are less, and times, before the first layer.
    rungs : float32, (budgets,)
        The budgets to choose from, in tokens or as shares, rising; empty until it is fitted.
    rung_shifts : float32, (budgets, steps, 2)
        The shifts of each budget's θ_r and θ_s at each step.
    seen : list of Tensor, optional
        Where the features of each forward go while it is being fitted.
    """

    mean: Tensor
    scale: Tensor
    rungs: Tensor
    rung_shifts: Tensor

    def __init__(self, hidden_size: int, step: int) -> None:
        super().__init__()
        self.step = step
        self.seen: list[Tensor] | None = None
        features = feature_count(hidden_size)
        self.register_buffer("mean", torch.zeros(features, dtype=torch.float32))
        self.register_buffer("scale", torch.ones(features, dtype=torch.float32))
        self.sizes = (features, *_WIDTHS, 2)
        for name, value in self.drawn().items():
            self.register_buffer(name, value.detach())
        # Kept with the runtime state, since how many there are is found by calibration.
        self.register_buffer("rungs", torch.zeros(0), persistent=False)
        self.register_buffer("rung_shifts", torch.zeros(0, 0, 2), persistent=False)

    def drawn(self) -> dict[str, Tensor]:
        """Draw weights to begin with, by name; they take a gradient."""
        weights: dict[str, Tensor] = {}
        device = self.mean.device
        for n, (inputs, outputs) in enumerate(pairwise(self.sizes)):
            layer = nn.Linear(inputs, outputs, dtype=torch.float32, device=device)
            weights |= {f"weight{n}": layer.weight, f"bias{n}": layer.bias}
        return weights

    def forward(self, features: Tensor, dropout: float = 0.0) -> Tensor:
        """Compute the logits of P(enough).

        Parameters
        ----------
        features : float32, (batch, features)
        dropout : float
            Share of the features and of hidden units that fitting leaves out.

        Returns
        -------
        Tensor
            float32, (batch, budgets).
        """
        buffers = dict(self.named_buffers(recurse=False))
        x = (features - self.mean) * self.scale
        for n in range(len(_WIDTHS)):
            x = nn.functional.dropout(x, dropout, training=dropout > 0)
            x = nn.functional.linear(x, buffers[f"weight{n}"], buffers[f"bias{n}"])
            x = nn.functional.gelu(x)
        n = len(_WIDTHS)
        x = nn.functional.linear(x, buffers[f"weight{n}"], buffers[f"bias{n}"])
        logs = self.rungs.log()
        location, width = x.float().split(1, dim=1)
        # From the middle of the budgets, so that a fit begins there.
        return (logs - (logs[0] + logs[-1]) / 2 - location) * (1.0 + width).exp()

    def set_ladder(self, ladder: list[dict[str, Any]]) -> None:
        """Set the budgets to choose from, as in `ATP.ladder`."""
        values = [rung["tokens"] if "tokens" in rung else rung["share"] for rung in ladder]
        shifts = [rung["shifts"] for rung in ladder]
        device = self.rungs.device
        self.rungs = torch.tensor(values, dtype=torch.float32, device=device)
        self.rung_shifts = torch.tensor(shifts, dtype=torch.float32, device=device)

    def choose(self, features: Tensor, price: float) -> Tensor:
        """Choose each row's budget, the one with the highest P(enough) − price·budget.

        Returns
        -------
        Tensor
            int64, (batch,): the number of the budget.
        """
        return (self(features).sigmoid() - price * self.rungs).argmax(dim=1)

    def shifts(
        self, context: Context, self_map: Tensor, cross_map: Tensor, price: float | None
    ) -> Tensor | None:
        """Return the shifts of each row's own budget at a step, from the one on where it is chosen.

        Parameters
        ----------
        context : Context
            Its memory has the list `chosen`, where the choice is kept for the later steps.
        self_map, cross_map : float32, (batch, tokens)
        price : float, optional
            None: rows have no budgets of their own.

        Returns
        -------
        Tensor, optional
            float32, (batch, 2).
        """
        if context.step == self.step and (price is not None or self.seen is not None):
            features = features_of(context, self_map, cross_map)
            if self.seen is not None:
                self.seen.append(features)
            if price is not None:
                shifts = self.rung_shifts[self.choose(features, price)]
                # NaN is found by the engine, which then says so.
                known = self(features).isfinite().all(dim=1)
                context.memory.chosen.append(torch.where(known[:, None, None], shifts, torch.nan))
        if price is None or context.step < self.step:
            return None
        chosen: Tensor = context.memory.chosen[-1]
        return chosen[:, context.step]
