"""The notebooks run, cut short; their figures are not good then, but they are there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jupytext
import matplotlib
import pytest
from PIL import Image

import tokenprune as tp

from .support.pages import ROOT

FOLDER = ROOT / "examples" / "notebooks"
# What the cell with the tag `parameters` sets, made small.
SMALL: dict[str, dict[str, Any]] = {
    "train_heads": {"STEPS": 2, "BATCH": 2, "CALIBRATION": 2, "QUESTIONS": 4},
    "choose_a_budget": {"BUDGETS": [0.2, 0.5], "QUESTIONS": 6, "CALIBRATION": 2},
    "compare_methods": {"QUESTIONS": 4, "CALIBRATION": 2},
}


def run(name: str) -> dict[str, Any]:
    """Run a notebook's cells in order, in one namespace, as papermill would."""
    names: dict[str, Any] = {}
    for cell in jupytext.read(FOLDER / f"{name}.py").cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, name, "exec", dont_inherit=True), names)
            if "parameters" in cell.metadata.get("tags", []):
                assert SMALL[name].keys() <= names.keys()
                names.update(SMALL[name])
    return names


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Notebooks write where they are run."""
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")


def test_all_are_run() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == SMALL.keys()


def test_train_heads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = run("train_heads")
    assert tp.losses(names["model"]).keys() == {"lm", "atp", "target", "total"}
    printed = capsys.readouterr().out
    assert [f"budget {budget}: " in printed for budget in (36, 29, 22)] == [True] * 3
    with Image.open(tmp_path / "kept.png") as picture:
        assert picture.format == "PNG"
    other = tp.wrap(tp.unwrap(names["again"]), tmp_path / "heads")
    heads = [dict(m.tokenprune.method.named_parameters()) for m in (names["model"], other)]
    assert all(bool((heads[0][name] == heads[1][name]).all()) for name in heads[0])


def test_choose_a_budget(tmp_path: Path) -> None:
    names = run("choose_a_budget")
    assert names["chosen"] in names["budgets"] == pytest.approx([28.8, 72])
    means = [names["runs"][budget].summary()["mean_tokens"] for budget in names["budgets"]]
    assert means[0] < means[1] < 144
    assert len(names["per_picture"]) == 6
    assert (tmp_path / "budgets.png").is_file()
    assert (tmp_path / "hardest.png").is_file()


def test_compare_methods() -> None:
    """At one budget, which is what the notebook promises."""
    names = run("compare_methods")
    assert not tp.is_wrapped(names["model"])
    table = names["table"]
    assert list(table.columns[0].cells) == ["unpruned", *names["methods"]]
    means = [float(cell) for cell in table.columns[2].cells]
    assert means == [144, *[pytest.approx(36, abs=3)] * (len(means) - 1)]
