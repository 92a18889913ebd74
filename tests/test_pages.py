"""Pages: their figures are the committed results', their links lead to files."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.atp_options.render import render as options_page
from benchmarks.digits_vqa import report
from benchmarks.reliability.render import render as reliability_page
from benchmarks.reproduce.render import render as reproduction_page
from benchmarks.reproduce.render import spread
from benchmarks.speed.render import render as performance_page
from benchmarks.store import read

from .support.pages import PAGES, ROOT, name

RESULTS = ROOT / "benchmarks" / "results"


RENDERED: dict[str, Callable[[Path], str]] = {
    "demo.md": lambda _: report.page(RESULTS),
    "options.md": lambda _: options_page(read(RESULTS / "atp-options.json")),
    "performance.md": lambda _: performance_page(RESULTS),
    "reliability.md": lambda _: reliability_page(
        read(RESULTS / "reliability.json")["rows"], "benchmarks/results/reliability.json"
    ),
    "reproduction.md": lambda folder: reproduction_page(RESULTS, folder),
}


@pytest.mark.parametrize("name", RENDERED)
def test_a_rendered_page_is_what_the_committed_results_say(name: str, tmp_path: Path) -> None:
    assert RENDERED[name](tmp_path) == (ROOT / "docs" / name).read_text(encoding="utf-8")


def test_the_readme_s_figures_are_the_committed_ones() -> None:
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    demo = json.loads((RESULTS / "quickstart.json").read_text())
    small = demo["small_budget"]
    shares = [row["mean_tokens"] / row["visual_tokens"] for row in (demo, small)]
    kept = [100 * row["accuracy_kept"] for row in (demo, small)]
    assert (
        f"keeps {kept[0]:.1f} % of its accuracy with {100 * shares[0]:.1f} % of the visual tokens "
        f"and {kept[1]:.1f} % with {100 * shares[1]:.1f} %"
    ) in text
    speeds = json.loads((RESULTS / "speed-cpu.json").read_text())["prefill"]
    one, eight = speeds["b1"], speeds["b8"]
    speedups, ratios = ([row[name] for row in (one, eight)] for name in ("speedup", "oracle_ratio"))
    assert (
        f"prefill is {speedups[0]:.2f} times as fast at batch 1 and {speedups[1]:.2f} times at "
        f"batch 8, and {ratios[0]:.3f} and {ratios[1]:.3f} of the best possible"
    ) in text
    for share, mine in ((0.15, "ATP"), (0.1, "ATP, learned ranking")):
        kept_by: dict[str, list[float]] = {}
        for row in read(RESULTS / "table1.json")["rows"]:
            if (row["block"], row["share"]) == ("mean", share) and "accuracy_kept" in row:
                kept_by.setdefault(row["method"], []).append(row["accuracy_kept"])
        ours = kept_by[mine]
        best = max((v for n, v in kept_by.items() if not n.startswith("ATP")), key=sum)
        assert len(ours) == len(best) == 3
        other = f"of the accuracy and the best other method {spread(best)} %"
        assert f"keeps {spread(ours)} % {other}" in text
    families = json.loads((ROOT / "adapters" / "verified.json").read_text())["families"]
    assert f"**{len(families)} families:**" in text


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing


def test_the_design_s_layout_is_the_code_s() -> None:
    """Every module at the top and in the engine has its word there, and none that is gone."""
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    layout = text.split("## Layout of the code", 1)[1].split("```")[1]
    package = ROOT / "tokenprune"
    here = {path.name for part in (".", "engine") for path in (package / part).glob("[!_]*.py")}
    here |= {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    named = set(re.findall(r"[a-z_]+(?:\.py|/)(?=[\s,;])", layout))
    assert not here - named
    anywhere = {path.name for part in (package, ROOT / "adapters") for path in part.rglob("*.py")}
    assert not {name for name in named if name.endswith(".py")} - anywhere
