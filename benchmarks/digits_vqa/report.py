"""The figures of one budget as JSON types, and several budgets side by side in a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rich.table import Table

from .dataset import Sample

__all__ = ["report", "table"]


def report(accuracy: float, base: float, tracked: Any, test: Sequence[Sample]) -> dict[str, Any]:
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
        "modules": summary["modules"],
        "kept_per_layer": [layer["mean"] for layer in summary["per_layer"]],
        "kv_bytes": summary["kv_bytes"],
        "kv_bytes_unpruned": summary["kv_bytes_unpruned"],
        "prefill_flops": summary["prefill_flops"],
        "prefill_flops_unpruned": summary["prefill_flops_unpruned"],
    }


def _by_digits(tracked: Any, test: Sequence[Sample]) -> dict[int, float]:
    """Mean tokens over the layers, for pictures of each number of digits."""
    tokens = tracked.kept().mean(axis=0)
    numbers = [len(sample.picture.digits) for sample in test]
    groups = {n: [t for t, m in zip(tokens, numbers, strict=True) if m == n] for n in set(numbers)}
    return {n: float(sum(group) / len(group)) for n, group in sorted(groups.items())}


_LINES: dict[str, Callable[[dict[str, Any]], str]] = {
    "accuracy, unpruned": lambda r: f"{r['base_accuracy']:.1%}",
    "accuracy, pruned": lambda r: f"{r['accuracy']:.1%}",
    "accuracy kept": lambda r: f"{r['accuracy_kept']:.1%}",
    "accuracy, random pruning": lambda r: f"{r['random_accuracy']:.1%}",
    "mean tokens over all layers": lambda r: f"{r['mean_tokens']:.1f}",
    "tokens after the last step": lambda r: f"{r['final_tokens']:.1f}",
    **{
        f"mean tokens, {n} digit{'s' * (n > 1)}": lambda r, n=n: (  # type: ignore[misc]
            f"{r['tokens_by_digits'][n]:.1f}" if n in r["tokens_by_digits"] else ""
        )
        for n in range(1, 7)
    },
    "key-value cache, bytes a picture": lambda r: (
        f"{r['kv_bytes']:,.0f} of {r['kv_bytes_unpruned']:,.0f}"
    ),
    "prefill, MFLOP": lambda r: (
        f"{r['prefill_flops'] / 1e6:.0f} of {r['prefill_flops_unpruned'] / 1e6:.0f}"
    ),
    "kept per layer": lambda r: " ".join(f"{kept:.0f}" for kept in r["kept_per_layer"]),
}
"""What the table says → how it is read off a report."""


def table(rows: Sequence[dict[str, Any]], questions: int) -> Table:
    """Lay reports out side by side, a column each."""
    total = rows[0]["visual_tokens"]
    made = Table(title=f"{questions} questions, {total:.0f} visual tokens a picture")
    made.add_column("")
    for row in rows:
        made.add_column(f"{row['mean_tokens'] / total:.1%} of the tokens", justify="right")
    for name, text in _LINES.items():
        made.add_row(name, *(text(row) for row in rows))
    return made
