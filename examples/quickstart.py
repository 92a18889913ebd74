"""The main job, on a small model in this repository: train the heads, prune, and look.

Wraps a small model of ``benchmarks/digits_vqa`` (the LLaVA, if nothing is said), trains only the
ATP heads on pictures of the training handwriting, and evaluates on held-out handwriting with tokens
really dropped. Prints the accuracy before and after with random pruning of the same counts beside
it, and writes the heads, a JSON report and a picture of what stayed.

    python examples/quickstart.py --json out.json
    python examples/quickstart.py --model qwen2_vl
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track as progress
from rich.table import Table
from transformers import AutoModelForImageTextToText, AutoProcessor

# The small model and its data live beside the library, not in it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tokenprune as tp
from benchmarks.digits_vqa.dataset import Sample, collate, samples
from benchmarks.digits_vqa.evaluate import accuracy
from benchmarks.digits_vqa.handwriting import SPLITS
from benchmarks.digits_vqa.models import MODELS
from benchmarks.digits_vqa.pictures import Size

BATCH = 32
# Where the small models can spare tokens: background early, all but the digits once those are
# known, and nearly all that is left once the question has read them.
LAYERS = {"llava": (1, 4, 12), "llava_next": (0, 4, 8, 12), "qwen2_vl": (0, 4, 8, 12)}


def train_heads(model: Any, processor: Any, drawn: Sequence[Sample], rate: float) -> None:
    """Fine-tune the heads, and only them, on pictures of the training handwriting."""
    train(model, processor, drawn, [{"params": tp.train_only_heads(model), "lr": rate}])


def train(model: Any, processor: Any, drawn: Sequence[Sample], groups: list[dict]) -> None:
    """Fine-tune the parameters of some groups, each with its highest rate."""
    steps = len(drawn) // BATCH
    optimiser = torch.optim.Adam(groups)
    # A warm-up: Adam's first steps have full length in whatever direction the first batch says.
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser,
        [group["lr"] for group in groups],
        total_steps=steps,
        pct_start=0.3,
        cycle_momentum=False,
    )
    model.train()
    for step in progress(range(steps), description="training"):
        chunk = drawn[step * BATCH : (step + 1) * BATCH]
        loss = model(**collate(processor, chunk, with_answers=True)).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    model.eval()


def evaluate(model: Any, processor: Any, test: Sequence[Sample]) -> tuple[float, Any]:
    """Accuracy and the tracked statistics, tokens really dropped."""
    with tp.track(model) as run:
        result = accuracy(model, processor, test)
    return result["overall"], run


def by_digits(run: Any, test: Sequence[Sample]) -> dict[int, float]:
    """Mean tokens over the layers, for pictures of each number of digits."""
    tokens = run.kept().mean(axis=0)
    numbers = [len(sample.picture.digits) for sample in test]
    groups = {n: [t for t, m in zip(tokens, numbers, strict=True) if m == n] for n in set(numbers)}
    return {n: float(sum(group) / len(group)) for n, group in sorted(groups.items())}


def main() -> None:
    """Run it all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="llava")
    parser.add_argument("--out", type=Path, default=Path("out/quickstart"))
    parser.add_argument("--json", type=Path, help="where the report goes; default: OUT/report.json")
    parser.add_argument("--share", type=float, default=0.248, help="of the visual tokens to keep")
    parser.add_argument("--small-share", type=float, default=0.151, help="a second, smaller budget")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--split", choices=SPLITS, default="held_out", help="handwriting")
    parser.add_argument("--test", type=int, default=1000, help="questions")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started = time.perf_counter()
    torch.manual_seed(options.seed)

    folder, sizes = MODELS[options.model].FOLDER, MODELS[options.model].SIZES
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    test = samples(options.split, options.test, options.seed, sizes=sizes)
    base = accuracy(model, processor, test)["overall"]

    other = samples("train", 8 * BATCH, options.seed + 1, sizes=sizes)
    batches = [
        collate(processor, other[n : n + 64], with_answers=False) for n in range(0, len(other), 64)
    ]
    images = [batch["input_ids"] == model.config.image_token_id for batch in batches]
    total = float(torch.cat([image.sum(dim=1) for image in images]).float().mean())
    budgets = [options.small_share * total, options.share * total]
    # Where pictures differ in size, a quarter of each one's tokens.
    target = budgets[-1] if len(sizes) == 1 else None
    tp.wrap(model, tp.ATPConfig(layers=LAYERS[options.model], target_tokens=target))
    # Training starts at the budget: the loss then speaks of which tokens, not of how many.
    tp.calibrate(model, batches, budgets[-1])
    drawn = samples("train", BATCH * options.steps, options.seed, sizes=sizes)
    train_heads(model, processor, drawn, options.rate)
    tp.calibrate(model, batches, budgets)

    rows = {}
    for budget in budgets:
        tp.set_budget(model, budget)
        found, run = evaluate(model, processor, test)
        rows[budget] = report(found, base, run, by_digits(run, test))
    heads = tp.save_heads(model, options.out / "heads")

    show = draw(model, processor, sizes, options.out / "kept.png", options.seed)
    for row in rows.values():
        keep = [row["kept_per_layer"][n + 1] for n in row["modules"]]
        tp.unwrap(model)
        tp.wrap(model, tp.RandomConfig(layers=tuple(row["modules"]), keep=tuple(keep)))
        row["random_accuracy"], _ = evaluate(model, processor, test)

    written = {**rows[budgets[-1]], "small_budget": rows[budgets[0]]}
    written["seconds"] = time.perf_counter() - started
    path = options.json or options.out / "report.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    console = Console()
    console.print(table(list(rows.values()), total, len(test)))
    console.print(f"{written['seconds']:.0f} s. Heads: {heads}  report: {path}  picture: {show}")


def report(found: float, base: float, run: Any, digits: dict[int, float]) -> dict[str, Any]:
    """The figures of one budget."""
    summary = run.summary()
    return {
        "base_accuracy": base,
        "accuracy": found,
        "accuracy_kept": found / base,
        "mean_tokens": summary["mean_tokens"],
        "visual_tokens": summary["visual_tokens"],
        "final_tokens": summary["final_tokens"],
        "tokens_spread": summary["tokens"]["std"],
        "tokens_by_digits": digits,
        "modules": summary["modules"],
        "kept_per_layer": [layer["mean"] for layer in summary["per_layer"]],
        "kv_bytes": summary["kv_bytes"],
        "kv_bytes_unpruned": summary["kv_bytes_unpruned"],
        "prefill_flops": summary["prefill_flops"],
        "prefill_flops_unpruned": summary["prefill_flops_unpruned"],
    }


def table(rows: Sequence[dict[str, Any]], total: float, n: int) -> Table:
    """The figures side by side."""
    made = Table(title=f"{n} questions, {total:.0f} visual tokens a picture")
    made.add_column("")
    for row in rows:
        made.add_column(f"{row['mean_tokens'] / total:.1%} of the tokens", justify="right")

    def line(name: str, text: Any) -> None:
        made.add_row(name, *(text(row) for row in rows))

    line("accuracy, unpruned", lambda r: f"{r['base_accuracy']:.1%}")
    line("accuracy, pruned", lambda r: f"{r['accuracy']:.1%}")
    line("accuracy kept", lambda r: f"{r['accuracy_kept']:.1%}")
    line("accuracy, random pruning", lambda r: f"{r['random_accuracy']:.1%}")
    line("mean tokens over all layers", lambda r: f"{r['mean_tokens']:.1f}")
    line("tokens after the last module", lambda r: f"{r['final_tokens']:.1f}")
    for n in range(1, 7):
        line(
            f"mean tokens, {n} digit{'s' * (n > 1)}",
            lambda r, n=n: f"{r['tokens_by_digits'][n]:.1f}" if n in r["tokens_by_digits"] else "",
        )
    line(
        "key-value cache, bytes a picture",
        lambda r: f"{r['kv_bytes']:,.0f} of {r['kv_bytes_unpruned']:,.0f}",
    )
    line(
        "prefill, MFLOP",
        lambda r: f"{r['prefill_flops'] / 1e6:.0f} of {r['prefill_flops_unpruned'] / 1e6:.0f}",
    )
    line("kept per layer", lambda r: " ".join(f"{k:.0f}" for k in r["kept_per_layer"]))
    return made


def draw(model: Any, processor: Any, sizes: Sequence[Size], path: Path, seed: int) -> Path:
    """A picture with many digits, and what stayed of it."""
    sample = samples("held_out", 1, seed + 1, digits=(6, 6), sizes=sizes[-1:])[0]
    with torch.no_grad():
        model(**collate(processor, [sample], with_answers=False))
    return tp.draw(sample.picture.pixels, tp.stats(model), path)


if __name__ == "__main__":
    main()
