"""Measure every open choice of ATP on the small model, one change at a time.

Each choice trains its heads anew on training handwriting, is calibrated to two budgets on other
training pictures, and is measured on the *validation* handwriting: the defaults were chosen here,
so the held-out pictures are not touched. Resumable: rows already in the file are kept.

    python -m benchmarks.atp_options --out benchmarks/results/atp-options.json
    python -m benchmarks.atp_options --render docs/options.md
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import AutoProcessor, LlavaForConditionalGeneration

import tokenprune as tp
from benchmarks.digits_vqa.dataset import collate, samples
from benchmarks.digits_vqa.evaluate import accuracy
from benchmarks.digits_vqa.models.llava import FOLDER as WEIGHTS
from benchmarks.environment import environment
from examples.quickstart import BATCH, LAYERS, train_heads

from .render import render

# What is changed from the defaults, in the words of the table.
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
RATE = 2e-3
SHARES = (0.248, 0.152)


def measure(
    choice: dict[str, Any], seed: int, steps: int, test: list[Any], processor: Any, base: float
) -> dict[str, Any]:
    """Train, calibrate, measure: one row."""
    torch.manual_seed(seed)
    model: Any = LlavaForConditionalGeneration.from_pretrained(WEIGHTS, dtype=torch.float32).eval()
    total = model.config.image_seq_length
    tp.wrap(model, tp.ATPConfig(layers=LAYERS["llava"], target_tokens=SHARES[0] * total, **choice))
    train_heads(model, processor, samples("train", BATCH * steps, seed), RATE)
    other = samples("train", 128, seed + 1000)
    batches = [collate(processor, other[n : n + 64], with_answers=False) for n in (0, 64)]
    row: dict[str, Any] = {"budgets": {}}
    for share in SHARES:
        try:
            tp.calibrate(model, batches, share * total)
        except ValueError as error:  # some choices cannot reach every budget
            row["budgets"][str(share)] = {"unreachable": str(error)}
            continue
        with tp.track(model) as run:
            found = accuracy(model, processor, test)["overall"]
        tokens = run.summary()["tokens"]
        row["budgets"][str(share)] = {
            "kept": found / base,
            "share": tokens["mean"] / total,
            "spread": tokens["std"],
        }
    return row


def main() -> None:
    """Measure what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/atp-options.json"))
    parser.add_argument("--render", type=Path, help="only write the table of --out to this file")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--test", type=int, default=330)
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    if options.render:
        options.render.write_text(render(json.loads(options.out.read_text())), encoding="utf-8")
        return
    processor = AutoProcessor.from_pretrained(WEIGHTS)
    test = samples("validation", options.test, 0)
    asked = {"steps": options.steps, "test": options.test}
    model: Any = LlavaForConditionalGeneration.from_pretrained(WEIGHTS, dtype=torch.float32).eval()
    base = accuracy(model, processor, test)["overall"]
    written: dict[str, Any] = {"base": base, "environment": environment(), **asked, "rows": {}}
    if options.out.exists():
        before = json.loads(options.out.read_text())
        if {name: before.get(name) for name in asked} == asked:
            written["rows"] = before["rows"]
    for seed in range(options.seeds):
        for name, choice in CHOICES.items():
            done = written["rows"].setdefault(name, {})
            if str(seed) in done:
                continue
            done[str(seed)] = measure(choice, seed, options.steps, test, processor, base)
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(written, indent=2, ensure_ascii=False) + "\n")
            Console().print(name, seed, done[str(seed)])
    Console().print(render(written), markup=False)


if __name__ == "__main__":
    main()
