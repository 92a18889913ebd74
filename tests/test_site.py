"""The site builds without a warning, fetches nothing, and its API has every public name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import reduce
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import pytest

import tokenprune as tp
from scripts import site_pages

from .support.pages import ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build it as `make docs` does: a link or an anchor that leads nowhere is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


def test_a_page_fetches_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 25
    for page in pages:
        tags = re.findall(r"<(?:script|link|img|iframe|source)\b[^>]*>", page.read_text("utf-8"))
        assert not [tag for tag in tags if re.search(r"""(?:src|href)=["']?(?:https?:)?//""", tag)]


def test_links_out_of_docs_lead_to_pages(site: Path) -> None:
    def links(page: str) -> set[str]:
        return set(re.findall(r'href="([^"#]+)"', (site / page).read_text("utf-8")))

    assert {"guide.html", "contributing.html", "examples/llava.html"} <= links("index.html")
    assert {"vlm_eval.html"} <= links("guide.html")
    assert {"../reproduction.html"} <= links("notebooks/compare_methods.html")


def test_configurations_are_shown_with_their_defaults_alone(site: Path) -> None:
    text = re.sub(r"<[^>]*>", "", (site / "api" / "methods.html").read_text("utf-8"))
    assert "checked(" not in text
    assert "target_weight: float = 4.0" in " ".join(text.split())


def documented() -> dict[str, Any]:
    """The objects that the pages of the API describe, by their names there."""
    pages = sorted((ROOT / "docs" / "api").glob("*.md"))
    paths = [path for p in pages for path in re.findall(r"^::: (\S+)", p.read_text("utf-8"), re.M)]
    assert len(paths) == len(set(paths))
    # In a checkout the adapters lie beside the package.
    full = [path.replace("adapters.", "tokenprune.adapters.", 1) for path in paths]
    return {path.rpartition(".")[2]: found(path) for path in full}


def found(path: str) -> Any:
    """Import what a dotted path names; a function may have the name of its module."""
    parts = path.split(".")
    for end in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:end])
        try:
            __import__(module)
        except ModuleNotFoundError:
            continue
        return reduce(getattr, parts[end:], sys.modules[module])
    raise AssertionError(path)


def test_the_api_has_every_public_name() -> None:
    names = documented()
    assert set(tp.__all__) - {"__version__"} <= names.keys(), "add it to a page in docs/api/"
    wrong = [name for name in tp.__all__ if name in names and names[name] is not getattr(tp, name)]
    assert not wrong


def test_a_run_notebook_is_shown_with_its_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless it has changed since it was run."""
    source = ROOT / "examples" / "notebooks" / "choose_a_budget.py"
    notebook = jupytext.read(source)
    code = next(cell for cell in notebook.cells if cell.cell_type == "code")
    code.outputs = [
        nbformat.v4.new_output("stream", name="stdout", text="42 tokens\n"),
        nbformat.v4.new_output("stream", name="stderr", text="a progress bar"),
        nbformat.v4.new_output("stream", name="stdout", text="43 tokens\n"),
        nbformat.v4.new_output("display_data", {"image/png": "cGljdHVyZQ==", "text/plain": "<x>"}),
    ]
    monkeypatch.setattr(site_pages, "ROOT", tmp_path)
    path = tmp_path / "out" / "notebooks" / "choose_a_budget.ipynb"
    path.parent.mkdir(parents=True)
    jupytext.write(notebook, path)
    page = site_pages.page_of(source)
    assert "```text\n42 tokens\n43 tokens\n```" in page
    assert "data:image/png;base64,cGljdHVyZQ==" in page
    assert "progress" not in page
    code.source += "\nSEED = 1"
    jupytext.write(notebook, path)
    assert "42 tokens" not in site_pages.page_of(source)
