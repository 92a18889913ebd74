"""Read an explanation off the record of a pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...checks import is_whole, require
from ...engine import engine_of
from ...engine.record import Basis, Record
from ...methods.context import Criterion
from .sample import Explanation, StepCriterion, StepExplanation

__all__ = ["explain", "explanation_of"]


def explain(model: nn.Module, sample: int = 0) -> Explanation:
    """Explain what this thread's last prefill with an image kept: token by token, step by step.

    Nothing is computed again, and nothing more than usual was computed in the forward: the scores
    and thresholds are those that the method decided by. Reading them waits for the device.

    Parameters
    ----------
    model : nn.Module
        Wrapped.
    sample : int
        Row of the batch.

    Returns
    -------
    Explanation
        ``explanation[row, col]`` and ``explanation.token(n)`` say what became of a token.

    Raises
    ------
    ValueError
        If the model is not wrapped, or the batch has no such sample.
    RuntimeError
        If there was no such prefill.

    Examples
    --------
    >>> model = tp.wrap(model, tp.FastVConfig(layer=1, keep=9))
    >>> output = model(**batch)
    >>> explanation = tp.explain(model)
    >>> print(explanation)
    Explanation of sample 0 by FastV: 36 visual tokens, 9 in the last layer
      after layer 1: 9 of 36 stay; 9 by attention of the prompt's last token among the 9 highest
    >>> token = explanation[0, 3]
    >>> token.left is None, token.steps[0].criteria[0].rank <= 9
    (False, False)
    """
    record = engine_of(model).latest.record
    if record is None:
        raise RuntimeError(
            "No prompt with an image has been run in this thread: run the model first."
        )
    return explanation_of(record, sample)


def explanation_of(record: Record, sample: int) -> Explanation:
    """Read a sample of a pass on the host.

    Raises
    ------
    ValueError
        If the pass has no such sample.
    """
    batch = record.layout.mask.shape[0]
    known = is_whole(sample) and 0 <= sample < batch
    require(known, "sample", sample, f"0 to {batch - 1}, the rows of this batch")
    layout = {
        name: _host(getattr(record.layout, name)[sample])
        for name in ("mask", "image", "frame", "row", "col")
    }
    position = layout.pop("mask").nonzero()[0]
    alive = _host(record.alive()[:, sample])[:, position]
    there = np.ones(len(position), dtype=bool)
    steps = []
    for decision, basis in zip(record.decisions, record.bases, strict=True):
        kept = alive[decision.layer + 1]
        # A softened pass asks about tokens that are gone too, and their answers do not count.
        may = np.ones_like(there) if record.revives else there
        steps.append(_Step(basis, sample, position).explained(decision.layer, may, kept))
        there = kept
    places = {name: values[position] for name, values in layout.items()}
    return Explanation(record.method, sample, position, steps=tuple(steps), **places)


class _Step:
    """Reads one step's basis for one sample.

    Parameters
    ----------
    basis : Basis
    sample : int
    position : int64, (tokens,)
        The sample's visual tokens.
    """

    def __init__(self, basis: Basis, sample: int, position: np.ndarray) -> None:
        self.basis, self.sample, self.tokens = basis, sample, len(position)
        self.columns = _host(basis.among[sample]).nonzero()[0]
        self.numbers = np.searchsorted(position, _host(basis.positions[sample])[self.columns])

    def explained(self, layer: int, may: np.ndarray, kept: np.ndarray) -> StepExplanation:
        """Return the step as it was for the sample."""
        basis = self.basis
        criteria = tuple(self._criterion(criterion) for criterion in basis.criteria)
        asked = self._spread(np.ones(len(self.columns), dtype=bool), False) & may
        return StepExplanation(
            layer=layer,
            asked=asked,
            kept=kept,
            among=len(self.columns),
            criteria=criteria,
            places=None if basis.max_kept is None else self._places(criteria),
            max_kept=basis.max_kept,
            attention={
                group: self._spread(self._row(received.mean_visible()), np.nan)
                for group, received in sorted(basis.received.items())
            },
        )

    def _criterion(self, given: Criterion) -> StepCriterion:
        met = np.ones(len(self.columns), dtype=bool)
        scores = ranks = threshold = None
        limit: Any = None
        if given.scores is not None:
            scores = self._row(given.scores)
            ranks = _ranks(scores)
            if given.threshold is not None:
                threshold = _host(given.threshold[self.sample, 0])
                met &= scores > threshold
            if given.limit is not None:
                limit = given.limit
                if isinstance(limit, Tensor):
                    limit = _host(limit[self.sample, 0])
                met &= ranks <= limit
        if given.met is not None:
            met &= self._row(given.met)
        return StepCriterion(
            name=given.name,
            met=self._spread(met, False),
            scores=None if scores is None else self._spread(scores, np.nan),
            ranks=None if ranks is None else self._spread(ranks, 0),
            threshold=None if threshold is None else float(threshold),
            limit=None if limit is None else float(limit),
        )

    def _places(self, criteria: tuple[StepCriterion, ...]) -> np.ndarray | None:
        """Return the places of the tokens that meet a criterion, from 1; 0 at the others."""
        margins = [
            c.scores - np.asarray(c.threshold or 0, dtype=c.scores.dtype)
            for c in criteria
            if c.scores is not None
        ]
        if len(margins) < len(criteria):
            return None  # what has no score has no place
        met = np.any([c.met for c in criteria], axis=0)
        places = np.zeros(self.tokens, dtype=np.int64)
        places[met] = _ranks(np.max(margins, axis=0)[met])
        return places

    def _row(self, values: Tensor) -> np.ndarray:
        """Return the sample's values at the tokens that the step decided among."""
        return _host(values[self.sample])[self.columns]

    def _spread(self, values: np.ndarray, elsewhere: float) -> np.ndarray:
        """Return values at their tokens' numbers: (tokens,)."""
        full = np.full(self.tokens, elsewhere, dtype=values.dtype)
        full[self.numbers] = values
        return full


def _ranks(scores: np.ndarray) -> np.ndarray:
    """Return each score's rank, from 1, the highest first; of equal ones the earlier first."""
    ranks = np.empty(len(scores), dtype=np.int64)
    ranks[np.argsort(-scores, kind="stable")] = np.arange(1, len(scores) + 1)
    return ranks


def _host(values: Tensor) -> np.ndarray:
    """Return an array of the same numbers; numpy has no bfloat16."""
    values = values.detach().cpu()
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
