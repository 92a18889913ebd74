"""The program that writes docs/reliability.md: what it counts, and that it leaves nothing out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.reliability.render import render
from benchmarks.reliability.rows import ROWS, Row
from benchmarks.reliability.run import check, run

ENVIRONMENT = {"processor": "a", "python": "3", "torch": "2", "transformers": "5"}
HEAD = "import os\nfrom tests.support.case_counts import count\nimport pytest\n"
# As the suite's own conftest has it.
OPTIONS = "def pytest_addoption(parser): parser.addoption('--seed')"
GOOD = HEAD + "def test_some():\n    count('kills', 3)\n    count('kills')\n"
BAD = HEAD + "def test_some():\n    count('kills', 2)\n    assert os.environ['HELD'] == 'yes'\n"
SKIPS = HEAD + "@pytest.mark.skip(reason='no saws')\ndef test_some(): pass\n"


def ran(folder: Path, text: str, **variables: str) -> dict[str, Any]:
    (folder / "conftest.py").write_text(OPTIONS)
    file = folder / "test_attack.py"
    file.write_text(text)
    row = Row("Attack", "It is attacked.", str(file), variables)
    return {**run(row, seed=5, workers=0), "environment": ENVIRONMENT}


def page(found: dict[str, Any]) -> str:
    return render([{**found, "attack": row.name} for row in ROWS], "results.json")


def test_a_row_that_holds(tmp_path: Path) -> None:
    found = ran(tmp_path, GOOD)
    assert (found["exit_code"], found["failed"], found["tests"]) == (0, [], 1)
    assert found["cases"] == {"kills": 4}
    assert found["command"].endswith("test_attack.py --seed=5")
    assert f"**{len(ROWS)} of {len(ROWS)} attacks found nothing.**" in page(found)
    assert "4 kills; 1 tests | nothing |" in page(found)


def test_a_row_that_does_not(tmp_path: Path) -> None:
    found = ran(tmp_path, BAD, HELD="no")
    assert found["exit_code"] == 1
    assert found["failed"] == ["test_some"]
    assert found["cases"] == {"kills": 2}
    assert "HELD=no" in found["command"]
    assert f"**0 of {len(ROWS)} attacks found nothing.**" in page(found)
    assert "| **test_some** |" in page(found)
    assert ran(tmp_path, BAD, HELD="yes")["exit_code"] == 0


def test_what_was_left_out_is_said(tmp_path: Path) -> None:
    found = ran(tmp_path, SKIPS)
    assert found["tests"] == 0
    assert "Left out: test_some: no saws" in page(found)


def test_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "grows.py").write_text("import sys; print('grown'); sys.exit(1)")
    monkeypatch.chdir(tmp_path)
    row = Row("Attack", "", "grows --count 3")
    check([row])
    found = {**run(row, seed=5, workers=0), "environment": ENVIRONMENT}
    assert found["command"].endswith("python -m grows --count 3 --seed 5")
    assert (found["exit_code"], found["last_line"]) == (1, "grown")
    assert "found nothing" in page(found)


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    row = replace(ROWS[0], target=str(tmp_path / "test_gone.py"))
    with pytest.raises(FileNotFoundError, match=r"test_gone\.py \(for 'Any order'\): not there"):
        check([row])


def test_a_row_without_results_is_an_error(tmp_path: Path) -> None:
    results = [{"attack": row.name} for row in ROWS[1:]]
    with pytest.raises(ValueError, match=r"has no results of \['Any order'\]"):
        render(results, "results.json")
