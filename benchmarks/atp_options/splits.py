"""Train the small LLaVA's heads with an optimiser step of 8 samples split in several ways.

    python -m benchmarks.atp_options.splits

prints, for each way, how near the mean count of validation pictures is to the target, how much
counts differ between them, and the loss of the last steps. `--apart` takes each batch's mean in the
target loss as if it were a step of its own.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any
from unittest.mock import patch

import torch

import tokenprune as tp
from benchmarks.digits_vqa import recipe
from benchmarks.digits_vqa.dataset import collate, samples
from tokenprune.methods.atp.loss import TargetLoss

from .__main__ import RATE, SHARES

STEP = 8
TEST = 64


def measure(batch: int, step: int, steps: int) -> tuple[float, float, float, float]:
    """Return the target, the mean count, its standard deviation and the last loss."""
    torch.manual_seed(0)
    model, processor = recipe.load("llava")
    target = SHARES[0] * model.config.image_seq_length
    tp.wrap(model, tp.ATPConfig(layers=recipe.LAYERS["llava"], target_tokens=target))
    # Smaller steps at a lower rate: there are more of them.
    optimiser = torch.optim.Adam(tp.train_only_heads(model), lr=RATE * (step / STEP) ** 0.5)
    drawn = samples("train", STEP * steps, 0)
    losses = []
    model.train()
    for first in range(0, len(drawn), step):
        total = 0.0
        for start in range(first, first + step, batch):
            rows = collate(processor, drawn[start : start + batch], with_answers=True)
            loss = model(**rows).loss * batch / step
            loss.backward()
            total += float(loss.detach())
        losses.append(total)
        optimiser.step()
        optimiser.zero_grad()
    model.eval()
    counts: list[Any] = []
    with torch.no_grad():
        for rows in recipe.calibration_batches(processor, samples("validation", TEST, 5), 16):
            model(**rows)
            counts += tp.stats(model).kept.mean(axis=0).tolist()
    last = losses[-max(1, len(losses) // 10) :]
    return target, statistics.mean(counts), statistics.stdev(counts), statistics.mean(last)


def main() -> None:
    """Measure each way to split a step."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--apart", action="store_true", help="as if each batch were a step")
    options = parser.parse_args()
    for batch, step in ((STEP, STEP), (4, STEP), (1, STEP), (1, 1)):
        with patch.object(TargetLoss, "_before", TargetLoss._before):
            if options.apart:
                TargetLoss._before = lambda *_: None  # type: ignore[method-assign]
            target, mean, spread, loss = measure(batch, step, options.steps)
        print(
            f"batches of {batch}, {step // batch} a step: {mean:.2f} tokens of {target:.2f}, "
            f"standard deviation {spread:.2f}, loss {loss:.4f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
