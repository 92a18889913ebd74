"""The demo's figures: as JSON types, as a table on the screen, and as the page docs/demo.md.

python -m benchmarks.digits_vqa.report --render docs/demo.md
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks import tables
from benchmarks.store import Row, read

from .dataset import Sample

__all__ = ["QUESTIONS", "page", "report", "table"]

QUESTIONS = 1000
"""Held-out questions that the demo asks."""

_RESULTS = {
    "LLaVA": "quickstart.json",
    "LLaVA-NeXT": "quickstart-llava_next.json",
    "Qwen2-VL": "quickstart-qwen2_vl.json",
}


def report(accuracy: float, base: float, tracked: Any, test: Sequence[Sample]) -> Row:
    """Gather what was measured at one budget.

    Parameters
    ----------
    accuracy, base : float
        Shares of right answers, pruned and unpruned.
    tracked : tokenprune.measure.Tracker
        What `tokenprune.track` recorded on the samples, in their order.
    test : sequence of Sample

    Returns
    -------
    dict
        Of JSON types.
    """
    summary = tracked.summary()
    return {
        "base_accuracy": base,
        "accuracy": accuracy,
        "accuracy_kept": accuracy / base,
        "mean_tokens": summary["mean_tokens"],
        "visual_tokens": summary["visual_tokens"],
        "final_tokens": summary["final_tokens"],
        "tokens_spread": summary["tokens"]["std"],
        "tokens_by_digits": _by_digits(tracked, test),
        "pruning_layers": summary["pruning_layers"],
        "kept_per_layer": [layer["mean"] for layer in summary["per_layer"]],
        "kv_bytes": summary["kv_bytes"],
        "kv_bytes_unpruned": summary["kv_bytes_unpruned"],
        "prefill_flops": summary["prefill_flops"],
        "prefill_flops_unpruned": summary["prefill_flops_unpruned"],
    }


def _by_digits(tracked: Any, test: Sequence[Sample]) -> dict[str, float]:
    """Return the mean tokens over the layers for each number of digits on a picture."""
    tokens = tracked.kept().mean(axis=0)
    numbers = [len(sample.picture.digits) for sample in test]
    groups = {n: [t for t, m in zip(tokens, numbers, strict=True) if m == n] for n in set(numbers)}
    return {str(n): float(sum(group) / len(group)) for n, group in sorted(groups.items())}


_LINES: dict[str, Callable[[Row], str]] = {
    "accuracy, unpruned": lambda r: f"{r['base_accuracy']:.1%}",
    "accuracy, pruned": lambda r: f"{r['accuracy']:.1%}",
    "accuracy kept": lambda r: f"{r['accuracy_kept']:.1%}",
    "accuracy, random pruning": lambda r: f"{r['random_accuracy']:.1%}",
    "mean tokens over all layers": lambda r: f"{r['mean_tokens']:.1f} of {r['visual_tokens']:.0f}",
    "tokens after the last step": lambda r: f"{r['final_tokens']:.1f}",
    **{
        f"mean tokens, {n} digit{'s' * (n > 1)}": lambda r, n=n: (  # type: ignore[misc]
            f"{r['tokens_by_digits'][str(n)]:.1f}" if str(n) in r["tokens_by_digits"] else ""
        )
        for n in range(1, 7)
    },
    "key-value cache, bytes a picture": lambda r: (
        f"{r['kv_bytes']:,.0f} of {r['kv_bytes_unpruned']:,.0f}"
        f" ({r['kv_bytes'] / r['kv_bytes_unpruned']:.1%})"
    ),
    "prefill, MFLOP": lambda r: (
        f"{r['prefill_flops'] / 1e6:.0f} of {r['prefill_flops_unpruned'] / 1e6:.0f}"
        f" ({r['prefill_flops'] / r['prefill_flops_unpruned']:.1%})"
    ),
    "kept per layer": lambda r: " ".join(f"{kept:.0f}" for kept in r["kept_per_layer"]),
}
"""What the table says → how it is read off a report."""


def table(rows: Sequence[Row], questions: int) -> Table:
    """Lay reports out side by side, a column each."""
    total = rows[0]["visual_tokens"]
    made = Table(title=f"{questions} questions, {total:.0f} visual tokens a picture")
    made.add_column("")
    for row in rows:
        made.add_column(f"{row['mean_tokens'] / total:.1%} of the tokens", justify="right")
    for name, text in _LINES.items():
        made.add_row(name, *(text(row) for row in rows))
    return made


_HEAD = """# What the demo measures

Written by `python -m benchmarks.digits_vqa.report --render docs/demo.md` from
`benchmarks/results/quickstart*.json`: do not edit. `make demo` measures the LLaVA's columns again,
`python -m examples.quickstart --model llava_next` and `--model qwen2_vl` the others.

The small models of `benchmarks/digits_vqa`, trained from random weights on composed pictures of
real handwriting; {questions:,} questions about held-out handwriting. ATP's thresholds are
calibrated, its heads trained 40 steps with everything else frozen, and calibrated again, all on
training pictures; then tokens are really dropped. A column's percentage is the share of the visual
tokens that stay, on average over all layers. Random pruning drops as many tokens after the same
layers. One standard error of the LLaVA's pruned accuracy is {errors} points.
"""

_TAIL = """
The paper reports 98.1 % of the accuracy at 25 % of the tokens and 94.6 % at 15.3 %, on
LLaVA-1.5-7B: another model and other questions, so the figures are of one kind, not on one scale.
The other methods and the paper's tables on the small LLaVA are in
[reproduction.md](reproduction.md).
"""


def page(results: Path) -> str:
    """Write the page of the reports in a folder."""
    reports = {model: read(results / file) for model, file in _RESULTS.items()}
    columns = [
        (f"{model}, {row['mean_tokens'] / row['visual_tokens']:.1%}", row)
        for model, found in reports.items()
        for row in (found, found["small_budget"])
    ]
    body = [
        [name, *(text(row) for _, row in columns)]
        for name, text in _LINES.items()
        if name != "kept per layer"  # 24 numbers
    ]
    errors = " and ".join(
        f"{100 * (row['accuracy'] * (1 - row['accuracy']) / QUESTIONS) ** 0.5:.1f}"
        for _, row in columns[:2]
    )
    head = _HEAD.format(questions=QUESTIONS, errors=errors)
    made = tables.table(["", *(name for name, _ in columns)], body)
    seconds = reports["LLaVA"]["seconds"]
    took = f"\nOn 2 CPU cores (AMD EPYC); the LLaVA's columns took {seconds:.0f} s.\n"
    return head + "\n" + made + took + _TAIL


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--render", type=Path, required=True, help="the page to write")
    options = parser.parse_args()
    tables.write_page(options.render, page(options.results))


if __name__ == "__main__":
    main()
