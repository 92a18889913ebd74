"""The pages of the repository, and the blocks of code on them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "benchmarks").rglob("*.md")),
]
"""Every page that a user or a contributor reads."""


@dataclass(frozen=True)
class Block:
    """A fenced block of code."""

    line: int
    language: str
    text: str


def name(page: Path) -> str:
    """Return a page's path in the repository."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, *languages: str) -> list[Block]:
    """Return a page's blocks, in order: all, or those in some languages."""
    text = page.read_text(encoding="utf-8")
    fences = re.finditer(r"^( *)```([^\n]*)\n(.*?)^\1```$", text, re.DOTALL | re.MULTILINE)
    found = []
    for fence in fences:
        indent, language, body = fence.groups()
        lines = [line.removeprefix(indent) for line in body.splitlines(keepends=True)]
        start = text[: fence.start(3)].count("\n")
        found.append(Block(start, language.strip(), "".join(lines)))
    return [block for block in found if not languages or block.language in languages]


def with_blocks(*languages: str) -> list[Path]:
    """Return the pages that have a block in one of some languages."""
    return [page for page in PAGES if blocks(page, *languages)]
