"""The measurements as a Markdown page."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.tables import table

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
"""


def render(content: dict[str, Any]) -> str:
    """Write the page of the results of ``python -m benchmarks.atp_options``."""
    rows, test = content["rows"], content["test"]
    choices = list(dict.fromkeys(row["choice"] for row in rows))
    shares = list(rows[0]["budgets"])
    body = []
    for choice in choices:
        found = [row["budgets"] for row in rows if row["choice"] == choice]
        body.append([choice, *(_cell([row[share] for row in found]) for share in shares)])
    error = 100 * (0.97 * 0.03 / test) ** 0.5
    machine = ", ".join(f"{name} {value}" for name, value in content["environment"].items())
    return "\n".join(
        [
            _HEAD.format(steps=content["steps"], test=test, error=error),
            table(["choice", *(f"budget {float(share):.1%}" for share in shares)], body),
            f"Seeds: {len({row['seed'] for row in rows})}. Measured on: {machine}.\n",
        ]
    )


def _cell(budgets: list[dict[str, Any]]) -> str:
    if any("unreachable" in budget for budget in budgets):
        return "not reachable"
    kept = statistics.mean(budget["kept"] for budget in budgets)
    measured = statistics.mean(budget["share"] for budget in budgets)
    return f"{kept:.1%} ({measured:.1%})"
