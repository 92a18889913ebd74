"""A kept sample as the page's script reads it."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...engine.describe import steps_in_words
from ..explanation.sample import StepCriterion, StepExplanation
from ..explanation.token import GROUPS
from ..kept import KeptSample

__all__ = ["sample_data"]


def sample_data(sample: KeptSample, kept: np.ndarray) -> dict[str, Any]:
    """Return everything about a sample as JSON types.

    Parameters
    ----------
    sample : KeptSample
    kept : int64, (layers,)
        Visual tokens that each layer computed on.
    """
    explanation = sample.explanation
    total = len(explanation.position)
    return {
        "number": sample.number,
        "question": sample.question,
        "total": total,
        "mean": float(kept.mean()),
        "last": int(kept[-1]),
        "share": float(kept.mean()) / total,
        "unplaced": (explanation.row < 0).nonzero()[0].tolist(),
        "panels": [
            {
                "name": panel.name,
                "source": panel.source,
                "width": panel.width,
                "height": panel.height,
                "dark": panel.dark,
                "cells": panel.cells.tolist(),
            }
            for panel in sample.panels
        ],
        "steps": [_step(step) for step in explanation.steps],
    }


def _step(step: StepExplanation) -> dict[str, Any]:
    return {
        "when": steps_in_words((step.layer,)),
        "kept": step.kept.astype(int).tolist(),
        "asked": step.asked.astype(int).tolist(),
        "among": step.among,
        "criteria": [_criterion(criterion) for criterion in step.criteria],
        "places": None if step.places is None else step.places.tolist(),
        "most": step.max_kept,
        "attention": {GROUPS[name]: _short(values) for name, values in step.attention.items()},
    }


def _criterion(criterion: StepCriterion) -> dict[str, Any]:
    finite = criterion.threshold is not None and np.isfinite(criterion.threshold)
    return {
        "name": criterion.name,
        "met": criterion.met.astype(int).tolist(),
        "scores": None if criterion.scores is None else _short(criterion.scores),
        "ranks": None if criterion.ranks is None else criterion.ranks.tolist(),
        "threshold": float(f"{criterion.threshold:.5g}") if finite else None,
        "limit": criterion.limit,
    }


def _short(values: np.ndarray) -> list[float | None]:
    """Return numbers with five digits; None where there is none."""
    return [float(f"{value:.5g}") if np.isfinite(value) else None for value in values.tolist()]
