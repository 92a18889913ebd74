"""Train the heads of a small model, prune it, and compare it with the unpruned one.

Takes a small model of ``benchmarks/digits_vqa`` (the LLaVA by default), trains only the ATP heads
on pictures of the training handwriting, and evaluates on held-out handwriting with tokens really
dropped, beside random pruning with the same counts. Writes the heads, a JSON report and a picture
of the tokens that stay. Run it from the repository's root, where the model and its data are:

    python -m examples.quickstart
    python -m examples.quickstart --model qwen2_vl --json out.json
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import tokenprune as tp
from benchmarks.digits_vqa.dataset import Sample, collate, samples
from benchmarks.digits_vqa.evaluate import accuracy
from benchmarks.digits_vqa.handwriting import SPLITS
from benchmarks.digits_vqa.models import MODELS
from benchmarks.digits_vqa.recipe import (
    BATCH,
    LAYERS,
    calibration_batches,
    evaluate,
    load,
    train_heads,
)
from benchmarks.digits_vqa.report import QUESTIONS, report, table


def main() -> None:
    """Run it all."""
    options = arguments()
    started = time.perf_counter()
    torch.manual_seed(options.seed)
    sizes = MODELS[options.model].SIZES
    model, processor = load(options.model)
    test = samples(options.split, options.test, options.seed, sizes=sizes)
    base = accuracy(model, processor, test)["overall"]

    # Budgets are set on training pictures that the heads are not trained on.
    other = samples("train", 8 * options.batch, options.seed + 1, sizes=sizes)
    batches = calibration_batches(processor, other)
    total = mean_visual_tokens(model, batches)
    budgets = [options.small_share * total, options.share * total]

    # Wrap. Where pictures differ in size, the target is a quarter of each one's tokens.
    target = budgets[-1] if len(sizes) == 1 else None
    tp.wrap(model, tp.ATPConfig(layers=LAYERS[options.model], target_tokens=target))
    # Training starts at the budget: the loss then says which tokens stay, not how many.
    tp.calibrate(model, batches, budgets[-1])
    drawn = samples("train", options.batch * options.steps, options.seed, sizes=sizes)
    train_heads(model, processor, drawn, options.rate, options.batch)
    tp.calibrate(model, batches, budgets)

    # Measure at both budgets, then look at one picture.
    rows = []
    for budget in budgets:
        tp.set_budget(model, budget)
        found, tracked = evaluate(model, processor, test)
        rows.append(report(found, base, tracked, test))
    heads = tp.save_heads(model, options.out / "heads")
    many_digits = samples("held_out", 1, options.seed + 1, digits=(6, 6), sizes=sizes[-1:])[0]
    picture = draw(model, processor, many_digits, options.out / "kept.png")

    for row in rows:
        row["random_accuracy"] = random_accuracy(model, processor, test, row)
    small, large = rows
    written = {**large, "small_budget": small, "seconds": time.perf_counter() - started}
    path = options.json or options.out / "report.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    console = Console()
    console.print(table(rows, len(test)))
    console.print(f"{written['seconds']:.0f} s. Heads: {heads}  report: {path}  picture: {picture}")


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="llava")
    parser.add_argument("--out", type=Path, default=Path("out/quickstart"))
    parser.add_argument("--json", type=Path, help="file of the report; default: OUT/report.json")
    parser.add_argument("--share", type=float, default=0.248, help="of the visual tokens to keep")
    parser.add_argument("--small-share", type=float, default=0.151, help="a second, smaller budget")
    parser.add_argument("--steps", type=int, default=40, help="of training")
    parser.add_argument("--batch", type=int, default=BATCH, help="samples in a step")
    parser.add_argument("--rate", type=float, default=1e-3, help="highest learning rate")
    parser.add_argument("--split", choices=SPLITS, default="held_out", help="handwriting")
    parser.add_argument("--test", type=int, default=QUESTIONS, help="questions")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def mean_visual_tokens(model: Any, batches: list[dict[str, torch.Tensor]]) -> float:
    """Count the visual tokens of a sample, on average."""
    images = [batch["input_ids"] == model.config.image_token_id for batch in batches]
    return float(torch.cat([image.sum(dim=1) for image in images]).float().mean())


def draw(model: Any, processor: Any, sample: Sample, path: Path) -> Path:
    """Draw which tokens of a sample's picture stay, step by step."""
    with torch.no_grad():
        model(**collate(processor, [sample], with_answers=False))
    return tp.draw(sample.picture.pixels, tp.stats(model), path)


def random_accuracy(model: Any, processor: Any, test: list[Sample], row: dict[str, Any]) -> float:
    """Measure random pruning at the same layers with the same mean counts."""
    keep = tuple(row["kept_per_layer"][layer + 1] for layer in row["pruning_layers"])
    tp.unwrap(model)
    tp.wrap(model, tp.RandomConfig(layers=tuple(row["pruning_layers"]), mean_tokens=keep))
    return evaluate(model, processor, test)[0]


if __name__ == "__main__":
    main()
