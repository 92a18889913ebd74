"""Measure every open choice of ATP on the small model, one change at a time.

Each choice trains its heads anew on training handwriting, is calibrated to two budgets on other
training pictures, and is measured on the *validation* handwriting: the defaults were chosen here,
so the held-out pictures are not touched. Resumable: rows already in the file are kept.

    python -m benchmarks.atp_options --out benchmarks/results/atp-options.json
    python -m benchmarks.atp_options --render docs/options.md
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import tokenprune as tp
from benchmarks.digits_vqa import recipe
from benchmarks.digits_vqa.dataset import samples
from benchmarks.digits_vqa.evaluate import accuracy
from benchmarks.environment import environment
from benchmarks.store import Store, read
from benchmarks.tables import write_page

from .render import render

CHOICES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "normalisation: minmax": {"normalisation": "minmax"},
    "normalisation: none": {"normalisation": "none", "start_redundant": -5.0},
    "averaging: all queries": {"averaging": "all"},
    "self score only": {"sources": ("self",)},
    "cross score only": {"sources": ("cross",)},
    "redundant pruning only": {"prunings": ("redundant",)},
    "spatial pruning only": {"prunings": ("spatial",), "start_spatial": 0.0},
    "training: soft": {"training": "soft"},
    "temperature 10": {"temperature": 10.0},
    "temperature 100": {"temperature": 100.0},
    "λ_atp 0": {"atp_weight": 0.0},
    "λ_atp 0.05": {"atp_weight": 0.05},
    "λ_target 0.2 on tokens": {"target_unit": "tokens", "target_weight": 0.2},
}
"""Name in the table → the fields of `tokenprune.ATPConfig` that differ from the defaults."""

RATE = 2e-3
SHARES = (0.248, 0.152)


def measure(
    choice: dict[str, Any], seed: int, steps: int, test: list[Any], base: float
) -> dict[str, Any]:
    """Train heads with a choice and measure them at each budget: one row."""
    torch.manual_seed(seed)
    model, processor = recipe.load("llava")
    total = model.config.image_seq_length
    layers, target = recipe.LAYERS["llava"], SHARES[0] * total
    tp.wrap(model, tp.ATPConfig(layers=layers, target_tokens=target, **choice))
    drawn = samples("train", recipe.BATCH * steps, seed)
    recipe.train_heads(model, processor, drawn, RATE)
    batches = recipe.calibration_batches(processor, samples("train", 128, seed + 1000))
    row: dict[str, Any] = {"budgets": {}}
    for share in SHARES:
        try:
            tp.calibrate(model, batches, share * total)
        except ValueError as error:  # some choices cannot reach every budget
            row["budgets"][str(share)] = {"unreachable": str(error)}
            continue
        found, tracked = recipe.evaluate(model, processor, test)
        tokens = tracked.summary()["tokens"]
        row["budgets"][str(share)] = {
            "kept": found / base,
            "share": tokens["mean"] / total,
            "spread": tokens["std"],
        }
    return row


def main() -> None:
    """Measure what is missing and print the page, or write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/atp-options.json"))
    parser.add_argument("--render", type=Path, help="only write the page of --out to this file")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--test", type=int, default=330)
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    if options.render:
        write_page(options.render, render(read(options.out)))
        return
    test = samples("validation", options.test, 0)
    base = accuracy(*recipe.load("llava"), test)["overall"]
    setting = {"steps": options.steps, "test": options.test}
    store = Store(options.out, setting, base=base, environment=environment())
    for seed in range(options.seeds):
        for name, choice in CHOICES.items():
            one = partial(measure, choice, seed, options.steps, test, base)
            store.once(one, choice=name, seed=seed)
    Console().print(render(store.content), markup=False)


if __name__ == "__main__":
    main()
