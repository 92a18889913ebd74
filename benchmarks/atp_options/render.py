"""The measurements as a Markdown page."""

from __future__ import annotations

import statistics
from typing import Any

__all__ = ["render"]

_HEAD = """# How each open choice of ATP measures

Written by `python -m benchmarks.atp_options --render docs/options.md` from
`benchmarks/results/atp-options.json`, which `make options` measures: do not edit.

The paper leaves these open. One change at a time from the defaults, heads trained {steps} steps on
training handwriting, calibrated on other training pictures, measured on {test} questions about
*validation* handwriting (the held-out
pictures are used for nothing but the final figures). Model: the small LLaVA of
`benchmarks/digits_vqa`, not a released one. One standard error of an accuracy of 97 % on {test}
questions is {error:.1f} points, so smaller differences mean nothing.

Accuracy kept, % of the unpruned model; in brackets the measured mean share of the visual tokens
over all layers.

| choice |{budgets} |
|---|---|---|
"""


def _cell(rows: list[dict[str, Any]], share: str) -> str:
    found = [row["budgets"][share] for row in rows]
    if any("unreachable" in budget for budget in found):
        return "not reachable"
    kept = statistics.mean(budget["kept"] for budget in found)
    measured = statistics.mean(budget["share"] for budget in found)
    return f"{kept:.1%} ({measured:.1%})"


def render(written: dict[str, Any]) -> str:
    """The page."""
    test = written["test"]
    shares = next(iter(written["rows"]["defaults"].values()))["budgets"]
    text = _HEAD.format(
        steps=written["steps"],
        test=test,
        error=100 * (0.97 * 0.03 / test) ** 0.5,
        budgets=" |".join(f" budget {float(share):.1%}" for share in shares),
    )
    for name, seeds in written["rows"].items():
        if not seeds:  # cut off before it was measured
            continue
        rows = list(seeds.values())
        cells = " | ".join(_cell(rows, share) for share in shares)
        text += f"| {name} | {cells} |\n"
    seeds = max(len(seeds) for seeds in written["rows"].values())
    machine = ", ".join(f"{name} {value}" for name, value in written["environment"].items())
    return text + f"\nSeeds: {seeds}. Measured on: {machine}.\n"
