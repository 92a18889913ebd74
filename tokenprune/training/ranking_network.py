"""Fit learned rankings to the attention that tokens receive in the layers to come."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..methods.atp.ranking import LearnedRanking, RankingInputs
from .attention_to_come import Seen

__all__ = ["RankingFit"]

_EPOCHS = 12
_ROWS = 32  # in one step
_RATE = 3e-3
_DECAY = 0.01
_WARM = 0.2  # of all steps: the rate rises, then falls to zero
_LEAST_SHARE = 1e-4  # of the mean: the logarithm of less says no more


class RankingFit:
    """One fit of the rankings of all steps.

    Parameters
    ----------
    rankings : sequence of LearnedRanking
        Of each step; changed in place.
    expected : int
        How many prompts there will be in all: the rate of learning falls to zero at the last.
    """

    def __init__(self, rankings: Sequence[LearnedRanking], expected: int) -> None:
        self.rankings = rankings
        parameters = [p for ranking in rankings for p in ranking.parameters()]
        self.device = parameters[0].device
        self.optimiser = torch.optim.AdamW(parameters, lr=_RATE, weight_decay=_DECAY)
        steps = _EPOCHS * math.ceil(expected / _ROWS)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimiser,
            lambda n: max(min((n + 1) / (_WARM * steps), (1 - n / steps) / (1 - _WARM), 1.0), 0.0),
        )

    def fit(self, prompts: list[list[Seen]]) -> None:
        """Take some epochs over these prompts.

        Raises
        ------
        ValueError
            If the loss is not finite. The rankings are then of no use.
        """
        with torch.enable_grad():
            for _ in range(_EPOCHS):
                for chosen in torch.randperm(len(prompts)).split(_ROWS):
                    rows = [prompts[n] for n in chosen.tolist()]
                    loss = torch.stack(self.divergences(rows, learned=True)).sum()
                    if not bool(loss.isfinite()):
                        raise ValueError(
                            "The ranking cannot be fitted: the loss is not finite, so the hidden "
                            "states or the attention of these prompts are not. Use a precision in "
                            "which the model does not overflow."
                        )
                    self.optimiser.zero_grad()
                    loss.backward()
                    self.optimiser.step()
                    self.schedule.step()

    def divergences(self, prompts: list[list[Seen]], learned: bool) -> list[Tensor]:
        """Compute, of each step, how far the ranking is from the attention to come.

        Returns
        -------
        list of Tensor
            Mean Kullback-Leibler divergence over the prompts, in nats, of the scores' shares from
            the shares of attention; with what is learned, or as attention alone ranks.
        """
        found = []
        for ranking, seen in zip(self.rankings, zip(*prompts, strict=True), strict=True):
            score = self._padded([part.score for part in seen])
            to_come = self._padded([part.to_come for part in seen])
            there = self._padded([torch.ones(len(part.score)) for part in seen]) > 0
            mean = score.sum(dim=1, keepdim=True) / there.sum(dim=1, keepdim=True)
            logits = torch.maximum(score, _LEAST_SHARE * mean).log()
            if learned:
                tokens = self._padded([part.tokens for part in seen])
                states = self._padded([part.prompt for part in seen])
                inputs = RankingInputs(tokens.float(), states.float())
                logits = logits + ranking(inputs)
            logs = logits.masked_fill(~there, -torch.inf).log_softmax(dim=1)
            logs = logs.masked_fill(~there, 0.0)
            share = to_come / to_come.sum(dim=1, keepdim=True)
            rows = (torch.xlogy(share, share) - share * logs).sum(dim=1)
            found.append(rows.mean())
        return found

    def _padded(self, parts: list[Tensor]) -> Tensor:
        return pad_sequence(parts, batch_first=True).to(self.device)
