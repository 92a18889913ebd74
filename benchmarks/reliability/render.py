"""docs/reliability.md, from the results."""

from __future__ import annotations

from typing import Any

from .rows import ROWS, Row

__all__ = ["render"]

HEAD = """# Reliability

Written by `python -m benchmarks.reliability --only-render --render docs/reliability.md` from
`{source}`: do not edit. `make reliability` runs everything again.

What was tried to break the library, how often, and what came of it. Cases are counted by the tests
themselves while they run; a test that fails prints what repeats it.
"""


def render(results: dict[str, Any], source: str) -> str:
    """Write the page.

    Raises
    ------
    ValueError
        If an attack has not been run.
    """
    missing = [row.name for row in ROWS if row.name not in results["rows"]]
    if missing:
        raise ValueError(f"{source} has no results of {missing}: run them, with --only if need be.")
    broken = [row.name for row in ROWS if not held(results["rows"][row.name])]
    lines = [HEAD.format(source=source)]
    lines += [
        f"**{len(ROWS) - len(broken)} of {len(ROWS)} attacks found nothing.**"
        + (f" Something was found by: {', '.join(broken)}." if broken else ""),
        "",
        "| attack | cases | found | time |",
        "| --- | --- | --- | ---: |",
    ]
    lines += [_line(row, results["rows"][row.name]) for row in ROWS]
    for row in ROWS:
        lines += ["", *_section(row, results["rows"][row.name])]
    return "\n".join(lines) + "\n"


def held(found: dict[str, Any]) -> bool:
    """Whether nothing was found."""
    return found["exit_code"] == 0 and not found.get("failed")


def _line(row: Row, found: dict[str, Any]) -> str:
    came = (
        "nothing" if held(found) else "**" + (", ".join(found.get("failed", [])) or "grew") + "**"
    )
    return f"| {row.name} | {_cases(found)} | {came} | {found['seconds'] / 60:.0f} min |"


def _cases(found: dict[str, Any]) -> str:
    counts = [f"{number:,} {what}" for what, number in sorted(found["cases"].items())]
    tests = [f"{found['tests']:,} tests"] if "tests" in found else []
    return "; ".join(counts + tests)


def _section(row: Row, found: dict[str, Any]) -> list[str]:
    machine = found["environment"]
    lines = [f"## {row.name}", "", row.tried, "", "```", found["command"], "```", ""]
    lines.append(
        f"Seed {found['seed']}; torch {machine['torch']}, transformers {machine['transformers']}, "
        f"Python {machine['python']}, {machine['processor']}. The last line: "
        f"`{found['last_line']}`."
    )
    lines += ["", *(f"- Left out: {reason}" for reason in found.get("skipped", []))]
    if not held(found):
        lines += ["", "```", *found.get("output", []), "```"]
    return [line for n, line in enumerate(lines) if line or (n and lines[n - 1])]
