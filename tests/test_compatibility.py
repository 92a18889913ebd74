"""docs/compatibility.md: each of its rows is tried, and stands there as it came out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .support import compatible_tools  # noqa: F401  # adds its rows
from .support.compatibility import PAGE, ROWS, Row

ROOT = Path(__file__).parents[1]
LINES = (ROOT / PAGE).read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.run.__name__)
def test_a_row_is_what_happens(row: Row) -> None:
    assert row.line() in LINES, "run `make compatibility`"


def test_the_page_has_no_other_rows() -> None:
    rows = [line for line in LINES if line.startswith("| ")]
    assert len(rows) == len(ROWS) + 1  # the names of the columns


def test_tests_that_it_names_exist() -> None:
    named = re.findall(r"`(tests/\w+\.py)`", "\n".join(LINES))
    assert len(named) > 5
    assert not [path for path in named if not (ROOT / path).exists()]


@pytest.mark.parametrize("refused", [False, True])
def test_a_row_can_fail(refused: bool) -> None:
    """What does not work is no row that works, and what works none that is refused."""

    def run() -> None:
        if not refused:
            raise ValueError("broken")

    with pytest.raises((ValueError, AssertionError), match=r"broken|expected to be refused"):
        Row("tool", run, refused).outcome()
