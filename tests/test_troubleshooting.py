"""docs/troubleshooting.md has every error and warning of the library, and none that is gone."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from .support.pages import ROOT

PAGE = ROOT / "docs" / "troubleshooting.md"
FILES = [
    *(path for path in sorted((ROOT / "tokenprune").rglob("*.py")) if "adapters" not in path.parts),
    *sorted((ROOT / "adapters").glob("*.py")),
]
GAP = "\0"  # what a message takes from the case at hand
# What nobody reads: a subclass has to define it; Python asks for a name and takes no for an answer.
UNSEEN = {"NotImplementedError", "AttributeError"}


def fixed(node: ast.AST) -> str:
    """Return a message as the code has it, with gaps where values go."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(map(fixed, node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return fixed(node.left) + fixed(node.right)
    return GAP


def messages(path: Path) -> Iterator[tuple[str, str]]:
    """Yield where a file raises or warns, and what it says."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        call = node.exc if isinstance(node, ast.Raise) else node
        if not isinstance(call, ast.Call):
            continue
        name = ast.unparse(call.func)
        warns = isinstance(node, ast.Call) and name.rpartition(".")[2] in ("warn", "warning")
        if (isinstance(node, ast.Raise) and name not in UNSEEN) or warns:
            text = max(map(fixed, call.args), key=len, default="")
            if (
                len(text.replace(GAP, "")) >= 8
            ):  # else its words are made elsewhere, and named there
                yield f"{path.relative_to(ROOT)}:{node.lineno}", text


def entries() -> list[str]:
    """Return the messages that the page's lists begin with, `…` where something differs."""
    text = PAGE.read_text(encoding="utf-8")
    items = re.findall(r"^- (`.*?`):\s", text, re.DOTALL | re.MULTILINE)
    spans = [span for item in items for span in re.findall(r"`([^`]+)`", item)]
    return [" ".join(span.split()) for span in spans]


def says(entry: str, message: str) -> bool:
    """Whether an entry is about a message."""
    return re.search(".*?".join(map(re.escape, entry.split("…"))), message, re.DOTALL) is not None


SITES = dict(site for path in FILES for site in messages(path))


def test_every_message_is_on_the_page() -> None:
    assert len(SITES) > 120
    known = entries()
    missing = {
        where: message.replace(GAP, "…")
        for where, message in SITES.items()
        if not any(says(entry, message) for entry in known)
    }
    assert not missing, f"say on {PAGE.name} what these mean and what to do"


def test_every_entry_is_a_message() -> None:
    """And has enough of its words to be found by."""
    gone = [entry for entry in entries() if not any(says(entry, m) for m in SITES.values())]
    vague = [entry for entry in entries() if len(re.sub(r"[…\s]", "", entry)) < 7]
    assert (gone, vague) == ([], [])
