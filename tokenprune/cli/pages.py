"""Write a page about what pruning kept: what ``tokenprune report`` does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..api import track, unwrap
from ..data import PromptCollator
from ..measure.report import report
from .loading import Batches, first_rows, load_model, mean_visual_tokens, progress
from .method import MethodOption, wrap_by
from .options import Budget
from .picture import seen

__all__ = ["reported"]


def reported(
    name: str,
    data: Path,
    images: Path | None,
    samples: int | None,
    method: MethodOption,
    budget: Budget | None,
    out: Path,
    batch: int,
    shown: int,
    device: str | None,
    dtype: str | None,
) -> dict[str, Any]:
    """Run a model on questions, and write a page with what was kept of each picture."""
    rows: Any = first_rows(data, images, samples)
    model, processor = load_model(name, device, dtype)
    batches = Batches(rows, PromptCollator(processor), batch, model.device)
    tokens = mean_visual_tokens(model, batches) if budget else 1.0
    wrap_by(model, method, tokens, budget.of(tokens) if budget else None)
    try:
        with track(model) as run, torch.no_grad():
            for n, inputs in enumerate(progress(batches, str(method))):
                model.generate(**inputs, max_new_tokens=1, do_sample=False)
                asked = [rows[k] for k in range(n * batch, min((n + 1) * batch, len(rows)))]
                # Of one row each, where every picture has the same size.
                pixels = inputs.get("pixel_values", torch.empty(0))
                pictures = [
                    seen(row["image"], processor, {"pixel_values": pixels[k : k + 1]})
                    for k, row in enumerate(asked)
                ]
                run.keep(pictures, [_question(row) for row in asked])
    finally:
        unwrap(model)
    path = report(run, out, title=f"What {method} keeps", pictures=shown)
    return {**run.summary(), "report": str(path), "in_words": repr(run)}


def _question(row: dict[str, Any]) -> str:
    """Return the text of a conversation's first turn."""
    return " ".join(part["text"] for part in row["turns"][0]["content"] if "text" in part)
