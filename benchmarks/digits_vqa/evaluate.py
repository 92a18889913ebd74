"""Accuracy of a model on the questions, overall, by kind and by number of digits."""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor

import tokenprune as tp

from .dataset import Sample, answer_ids, collate, last_positions, samples
from .handwriting import SPLITS
from .models import MODELS
from .questions import KINDS, PRESENCE


def accuracy(
    model: nn.Module, processor: Any, samples: Sequence[Sample], batch_size: int = 64
) -> dict[str, Any]:
    """Measure the share of questions answered correctly.

    Parameters
    ----------
    model : torch.nn.Module
        Called as ``model(**batch)``; only its ``logits`` at the last prompt position are read,
        and the answer is their largest over the whole vocabulary.
    processor : LlavaProcessor
        The model's processor.
    samples : sequence of Sample
        The questions.
    batch_size : int
        Questions in one forward pass.

    Returns
    -------
    dict
        ``overall`` (float), ``n`` (int), and the dicts ``kinds`` (by kind of question) and
        ``digits`` (by number of digits on the picture, an int).
    """
    right: list[bool] = []
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    with torch.inference_mode():
        for start in range(0, len(samples), batch_size):
            chunk = samples[start : start + batch_size]
            batch = collate(processor, chunk, with_answers=False)
            last = last_positions(batch["attention_mask"])
            batch = {name: tensor.to(device) for name, tensor in batch.items()}
            logits = model(**batch).logits.cpu()
            # Counted from the end, so that a model that drops visual tokens is read correctly.
            from_end = last - batch["attention_mask"].shape[1]
            chosen = logits[torch.arange(len(chunk)), from_end].argmax(-1)
            right += (chosen == answer_ids(processor, chunk)).tolist()
    model.train(training)
    kinds: dict[str, list[bool]] = defaultdict(list)
    counts: dict[int, list[bool]] = defaultdict(list)
    for sample, hit in zip(samples, right, strict=True):
        kinds[sample.question.kind].append(hit)
        counts[len(sample.picture.digits)].append(hit)
    return {
        "overall": sum(right) / len(right),
        "n": len(right),
        "kinds": {
            kind: sum(kinds[kind]) / len(kinds[kind]) for kind in KINDS + PRESENCE if kind in kinds
        },
        "digits": {number: sum(hits) / len(hits) for number, hits in sorted(counts.items())},
    }


def table(result: dict[str, Any], title: str) -> Table:
    """Lay the result of :func:`accuracy` out as a table."""
    made = Table(title=title)
    made.add_column("questions")
    made.add_column("accuracy", justify="right")
    for kind, share in result["kinds"].items():
        made.add_row(kind, f"{share:.1%}")
    made.add_section()
    for number, share in result["digits"].items():
        made.add_row(f"{number} digit{'s' * (number > 1)}", f"{share:.1%}")
    made.add_section()
    made.add_row(f"all {result['n']}", f"{result['overall']:.1%}")
    return made


def main() -> None:
    """Evaluate a saved model from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="llava")
    parser.add_argument("--weights", type=Path, help="the committed ones by default")
    parser.add_argument("--split", choices=SPLITS, default="held_out")
    parser.add_argument("--n", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--digits", type=int, nargs=2, default=(1, 6))
    parser.add_argument("--kinds", nargs="+", choices=KINDS + PRESENCE, default=KINDS)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--drop-after", type=int, help="drop every visual token after this layer")
    parser.add_argument("--json", type=Path, help="also write the result here")
    options = parser.parse_args()
    family = MODELS[options.model]
    folder = options.weights or family.FOLDER
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(folder)
    if options.drop_after is not None:
        tp.wrap(model, tp.RandomConfig(layers=(options.drop_after,), keep=0))
    drawn = samples(
        options.split, options.n, options.seed, tuple(options.digits), options.kinds, family.SIZES
    )
    result = accuracy(model, processor, drawn, options.batch_size)
    Console().print(table(result, f"{options.split}, seed {options.seed}"))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
