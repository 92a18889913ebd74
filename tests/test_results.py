"""Results and tables of the benchmarks: rows survive an interruption, and tables are whole."""

from __future__ import annotations

import doctest
import json
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks import store, tables
from benchmarks.store import Store, read, write
from benchmarks.tables import table


@pytest.mark.parametrize("module", [store, tables])
def test_examples(module: ModuleType) -> None:
    failed, tried = doctest.testmod(module)
    assert tried
    assert not failed


def test_rows_are_written_one_by_one_and_replaced_in_their_place(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.json"
    first = Store(path, {"steps": 4}, environment={"cores": 2})
    first.put({"found": "é"}, attack="a")
    first.put({"found": 2}, attack="b")
    again = Store(path, {"steps": 4}, environment={"cores": 8})
    again.put({"found": 3}, attack="a")
    assert read(path) == {
        "steps": 4,
        "environment": {"cores": 8},
        "rows": [{"found": 3, "attack": "a"}, {"found": 2, "attack": "b"}],
    }
    assert Store(path, {"steps": 5}).rows == []


def test_an_interrupted_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.json"
    write(path, {"rows": [1]})

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(store.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(path, {"rows": [1, 2]})
    assert json.loads(path.read_text()) == {"rows": [1]}


def test_a_table_has_as_many_cells_in_every_line() -> None:
    assert table(["a", "b"], [["1", "2"]], "lr").splitlines()[1] == "| --- | ---: |"
    with pytest.raises(ValueError, match=r"\['1'\] has 1 cells, the head \['a', 'b'\] 2"):
        table(["a", "b"], [["1"]])
