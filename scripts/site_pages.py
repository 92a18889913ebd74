"""Put files from outside ``docs/`` on the site, and lead the pages' links there.

A hook of mkdocs (``mkdocs.yml`` names it). Pages keep the links that are right in the repository;
what they lead to outside ``docs/`` is a page of the site, too.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

import jupytext
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]

# A file of the repository, and its page.
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changes.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CITATION.cff": "citation.md",
    "benchmarks/digits_vqa/README.md": "small_models.md",
    "benchmarks/vlm_eval/README.md": "vlm_eval.md",
    **{
        path.relative_to(ROOT).as_posix(): f"examples/{path.stem}.md"
        for path in sorted((ROOT / "examples").glob("[!_]*.py"))
    },
    **{
        path.relative_to(ROOT).as_posix(): f"notebooks/{path.stem}.md"
        for path in sorted((ROOT / "examples" / "notebooks").glob("*.py"))
    },
}
_LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made from files elsewhere."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=page_of(ROOT / source)))
    return files


def page_of(path: Path) -> str:
    """Return a file's text as Markdown: a notebook cell by cell, other code as one block."""
    if path.suffix == ".md":
        return path.read_text(encoding="utf-8")
    if path.parent.name == "notebooks":
        return "\n\n".join(map(_cell, cells_of(path)))
    return f"# {path.name}\n\n{_block('python', path.read_text(encoding='utf-8'))}"


def cells_of(path: Path) -> list[Any]:
    """Return a notebook's cells, with outputs where `make notebooks` has run what it says now."""
    cells = list(jupytext.read(path).cells)
    run = ROOT / "out" / "notebooks" / f"{path.stem}.ipynb"
    if run.exists():
        found = list(jupytext.read(run).cells)
        if [cell.source for cell in found] == [cell.source for cell in cells]:
            return found
    return cells


def _cell(cell: Any) -> str:
    if cell.cell_type == "markdown":
        return str(cell.source)
    outputs = cell.get("outputs", [])
    # Progress bars are on stderr, and stand between what is printed.
    printed = "".join(output.text for output in outputs if output.get("name") == "stdout")
    parts = [_block("python", cell.source), _block("text", printed) if printed else ""]
    parts += [_shown(output.data) for output in outputs if "data" in output]
    return "\n\n".join(filter(None, parts))


def _shown(data: Any) -> str:
    if picture := data.get("image/png"):
        return f'<img alt="" src="data:image/png;base64,{picture.strip()}">'
    return _block("text", data["text/plain"])


def _block(language: str, text: str) -> str:
    return f"```{language}\n{text.rstrip()}\n```"


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Lead links to where the site has what they lead to in the repository."""
    here = page.file.src_uri
    sources = {target: source for source, target in PAGES.items()}
    source = sources.get(here, f"docs/{here}")

    def led(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[1]))
        if not (ROOT / path).exists():
            return link[1]  # no link, or one that mkdocs reports
        target = PAGES.get(path, path.removeprefix("docs/"))
        return posixpath.relpath(target, posixpath.dirname(here) or ".")

    return _LINK.sub(led, markdown)
