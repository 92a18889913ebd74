"""Find each step's own shifts by what they cost: the divergence from the unpruned model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..engine import engine_of, paused
from .bisection import Shifting
from .counting import Count, Counting

__all__ = ["compare_next_tokens", "lower_divergence", "next_tokens"]

# Of a threshold's logit: thresholds on the share score x / (1 + x) then ask for e^δ times as much.
_DELTAS = (0.7, 0.7, 0.35, 0.35, 0.2)
_USUAL = 3  # counts for one trial, whose shift is near the last one's


def lower_divergence(
    shifting: Shifting, target: float, shared: float, count: Count, later: int
) -> Count:
    """Move the steps' own shifts to where the divergence at a budget is least, without gradient.

    A search by coordinates: in turn, of each step and pruning the shift is raised, or lowered, if
    that helps, the shared shift holding the count; several times, with smaller and smaller changes.

    Parameters
    ----------
    shifting : Shifting
        At the target already, with `Counting.compare` set; the shifts are left at the best found.
    target : float
    shared : float
        The shared shift at which it is at the target.
    count : Count
        There.
    later : int
        How many more counts are expected after these.

    Returns
    -------
    Count
        At the best found.
    """
    coordinates = [
        (step, column)
        for step in range(len(shifting.own))
        for column, moves in enumerate(shifting.moves)
        if moves
    ]
    best, best_shifts = count, shifting.method.shifts
    # What a change of a step's own shift took from the shared one so far: where to look next.
    answers = dict.fromkeys(coordinates, 0.0)
    trials = 2 * len(_DELTAS) * len(coordinates)

    def tried(step: int, column: int, change: float) -> bool:
        nonlocal best, best_shifts, shared, trials
        trials = max(trials - 1, 1)
        before = shifting.own[step][column]
        shifting.own[step][column] = before + change
        near = shared + answers[step, column] * change
        try:
            found, counted = shifting.meet(target, later + trials * _USUAL, near=near)
        except ValueError:  # not met with these shifts
            shifting.own[step][column] = before
            return False
        answers[step, column] = (found - shared) / change
        if not counted.divergence < best.divergence:
            shifting.own[step][column] = before
            return False
        best, best_shifts, shared = counted, shifting.method.shifts, found
        return True

    for delta in _DELTAS:
        for step, column in coordinates:
            # One move at most before the others had theirs: a step that took all it can get would
            # leave them nothing.
            _ = tried(step, column, delta) or tried(step, column, -delta)
    shifting.method.shifts = best_shifts
    return best


def compare_next_tokens(counting: Counting) -> None:
    """Let `counting` compare each row's next token with the unpruned model's.

    The Kullback-Leibler divergence of the pruned distribution from the unpruned one, in nats, where
    the answer begins.
    """
    taught: dict[int, Tensor] = {}

    def teach(number: int, output: Any) -> None:
        taught[number] = next_tokens(counting.batches[number], output)

    def compare(number: int, output: Any) -> list[float]:
        teacher = taught[number]
        found = next_tokens(counting.batches[number], output)
        rows = (teacher.exp() * (teacher - found)).sum(dim=1)
        return [float(value) for value in rows.tolist()]

    with paused(engine_of(counting.model)):
        counting.run(teach)
    counting.compare = compare


def next_tokens(batch: Mapping[str, Any], output: Any) -> Tensor:
    """Return log-probabilities of the first token of each row's answer: float32, (rows, vocab)."""
    logits = output["logits"]
    last = _last_of_prompt(batch, logits)
    return logits[torch.arange(len(last), device=logits.device), last].float().log_softmax(dim=-1)


def _last_of_prompt(batch: Mapping[str, Any], logits: Tensor) -> Tensor:
    rows, length = logits.shape[:2]
    places = torch.arange(length, device=logits.device)
    there = torch.ones(rows, length, dtype=torch.bool, device=logits.device)
    mask, labels = batch.get("attention_mask"), batch.get("labels")
    if mask is not None and mask.shape == (rows, length):
        there = mask.to(logits.device).bool()
    if labels is not None and labels.shape == (rows, length):
        # What answers are predicted from: the prompt alone may be seen.
        answered = (labels.to(logits.device) != -100).cumsum(dim=1) > 0
        there = there & ~answered
    return torch.where(there, places, 0).amax(dim=1)
