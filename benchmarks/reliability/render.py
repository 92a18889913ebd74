"""docs/reliability.md, from the results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.tables import table

from .rows import ROWS, Row

__all__ = ["render"]

HEAD = """# Reliability

Written by `python -m benchmarks.reliability --only-render --render docs/reliability.md` from
`{source}`: do not edit. `make reliability` runs everything again.

What was tried to break the library, how often, and what came of it. Cases are counted by the tests
themselves while they run; a test that fails prints what repeats it.
"""


def render(results: Sequence[dict[str, Any]], source: str) -> str:
    """Write the page.

    Parameters
    ----------
    results : sequence of dict
        What `benchmarks.reliability.run.run` returned for each attack, with ``attack``, its name,
        and ``environment``.
    source : str
        The results' file, as the page names it.

    Raises
    ------
    ValueError
        If an attack has not been run.
    """
    found = {result["attack"]: result for result in results}
    missing = [row.name for row in ROWS if row.name not in found]
    if missing:
        raise ValueError(f"{source} has no results of {missing}: run them, with --only if need be.")
    broken = [row.name for row in ROWS if not held(found[row.name])]
    lines = [HEAD.format(source=source)]
    lines += [
        f"**{len(ROWS) - len(broken)} of {len(ROWS)} attacks found nothing.**"
        + (f" Something was found by: {', '.join(broken)}." if broken else ""),
        "",
    ]
    body = [_line(row, found[row.name]) for row in ROWS]
    text = "\n".join(lines) + "\n" + table(["attack", "cases", "found", "time"], body, "lllr")
    sections = ["\n".join(_section(row, found[row.name])) for row in ROWS]
    return text + "".join(f"\n{section}\n" for section in sections)


def held(found: dict[str, Any]) -> bool:
    """Return whether an attack found nothing."""
    return found["exit_code"] == 0 and not found.get("failed")


def _line(row: Row, found: dict[str, Any]) -> list[str]:
    came = (
        "nothing" if held(found) else "**" + (", ".join(found.get("failed", [])) or "grew") + "**"
    )
    return [row.name, _cases(found), came, f"{found['seconds'] / 60:.0f} min"]


def _cases(found: dict[str, Any]) -> str:
    counts = [f"{number:,} {what}" for what, number in sorted(found["cases"].items())]
    tests = [f"{found['tests']:,} tests"] if "tests" in found else []
    return "; ".join(counts + tests)


def _section(row: Row, found: dict[str, Any]) -> list[str]:
    machine = found["environment"]
    lines = [f"## {row.name}", "", row.tried, "", "```sh", found["command"], "```", ""]
    lines.append(
        f"Seed {found['seed']}; torch {machine['torch']}, transformers {machine['transformers']}, "
        f"Python {machine['python']}, {machine['processor']}. The last line: "
        f"`{found['last_line']}`."
    )
    lines += ["", *(f"- Left out: {reason}" for reason in found.get("skipped", []))]
    if not held(found):
        lines += ["", "```", *found.get("output", []), "```"]
    return [line for n, line in enumerate(lines) if line or (n and lines[n - 1])]
