"""The bar that a calibration shows."""

from __future__ import annotations

from typing import Any

import pytest

import tokenprune as tp
from tokenprune.training.progress import Progress

from .support.tiny_llava import Batch, make_batch
from .support.training import PROMPTS, atp_llava


def data(number: int) -> list[Batch]:
    return [make_batch(PROMPTS, seed=seed) for seed in range(number)]


@pytest.mark.parametrize("progress", [None, True, False])
def test_progress_is_shown_on_standard_error_if_asked_for(progress: Any, capsys: Any) -> None:
    tp.calibrate(atp_llava(), data(1), 20.0, progress=progress)
    out, err = capsys.readouterr()
    assert not out
    assert ("Calibrating: 100%" in err and " tokens" in err) == (progress is True)


def test_the_bar_expects_what_is_left(monkeypatch: Any) -> None:
    """Its total is reached from nearby, and an error leaves the bar where it is."""
    seen: list[int] = []
    monkeypatch.setattr(Progress, "expect", lambda self, more: seen.append(self._done + more))
    batches = data(2)
    model = atp_llava()
    found = tp.calibrate(model, batches, [20.0, 26.0], progress=False)
    assert len(found) == 2
    assert seen[0] == len(batches) * (2 + 2 * 9)
    assert 0.5 < seen[0] / seen[-1] < 2.5
    assert abs(seen[-2] - seen[-1]) <= 4 * len(batches)
    seen.clear()
    with pytest.raises(ValueError, match="can be reached"):
        tp.calibrate(model, batches, [1], progress=False)
    assert len(seen) == 1
