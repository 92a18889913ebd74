"""Which rows of table 1 are still to be measured."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.store import Row

from .budgets import at_mean, with_final
from .positions import renumbered
from .setting import EARLY, LAYERS

__all__ = ["missing", "not_measured"]

_TOTAL, _DEPTH = 144, 24  # of the small LLaVA


def missing(rows: Sequence[Row], block: str, share: float) -> list[str]:
    """Return the methods without a row of each seed at a budget, though they can reach it.

    Parameters
    ----------
    rows : sequence of Row
        Of table 1.
    block : {"mean", "final"}
    share : float

    Examples
    --------
    >>> rows = [{"method": "ATP", "block": "mean", "share": 0.25, "seed": 0}]
    >>> missing(rows, "mean", 0.25)[-1]
    'SparseVLM, renumbered'
    """
    configs = (at_mean if block == "mean" else with_final)(share, _TOTAL, _DEPTH)
    names = [name for name, config in configs.items() if config is not None]
    # SparseVLM's counts follow from the pictures: whether it reaches a budget, only a run can say.
    of_block = {row["method"] for row in rows if row["block"] == block}
    names += [n for n in ("SparseVLM", renumbered("SparseVLM")) if n not in of_block]
    seeds = {row["seed"] for row in rows}
    keys = {(r["method"], r["seed"]) for r in rows if (r["block"], r["share"]) == (block, share)}
    return [name for name in names if any((name, seed) not in keys for seed in seeds)]


def _own(rows: Sequence[Row], block: str, share: float) -> list[str]:
    """Return ATP's rows that are not there, though a budget can be reached."""
    own = {
        "ATP": LAYERS,
        "ATP, calibrated only": LAYERS,
        "ATP, learned ranking": EARLY,
        "random, ATP's layers and counts": LAYERS,
    }
    there = {row["method"] for row in rows if (row["block"], row["share"]) == (block, share)}
    # Layers before the first step compute all tokens.
    reached = [n for n, layers in own.items() if block == "final" or share * _DEPTH > layers[0] + 1]
    return [name for name in reached if name not in there]


def not_measured(rows: Sequence[Row]) -> str:
    """Say which rows are not there yet: an empty cell would read as out of reach."""
    budgets: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for block in ("mean", "final"):
        for share in sorted({row["share"] for row in rows}, reverse=True):
            if names := missing(rows, block, share) + _own(rows, block, share):
                both = dict.fromkeys(name.removesuffix(renumbered("")) for name in names)
                budgets.setdefault((block, tuple(both)), []).append(f"{share:.0%}")
    lines = [
        f"- at {', '.join(shares)} {block} tokens: {'; '.join(names)}"
        for (block, names), shares in budgets.items()
    ]
    return (
        "Not measured yet, or not with both positions:\n\n" + "\n".join(lines) + "\n\n"
        if lines
        else ""
    )
