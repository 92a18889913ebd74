"""Saving beside kills, other savers and readers: what is loaded is always one save, whole.

``KILLS=100 pytest tests/test_killed_saves.py`` for a longer run than the default.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import tokenprune as tp

from .support.case_counts import count
from .support.heads_files import CONFIG, HEADS, read, write_older
from .support.saver_process import Savers, new_model, savers, set_all, value_of

KILLS = int(os.environ.get("KILLS", "10"))

pytestmark = pytest.mark.skipif(
    not hasattr(os, "fork"), reason="no fork and no SIGKILL on this system"
)


@pytest.fixture(scope="module")
def process() -> Iterator[Savers]:
    with savers() as found:
        yield found


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def wait_for(child_has_saved: Path, before: float) -> None:
    """Until the file was replaced: the child is in its loop."""
    ends = time.monotonic() + 60
    while child_has_saved.stat().st_mtime_ns == before:
        assert time.monotonic() < ends, "the saver saved nothing in a minute"
        time.sleep(0.001)


def test_a_kill_at_any_time_leaves_heads_that_load(process: Savers, tmp_path: Path) -> None:
    folder, model, draw = tmp_path / "heads", new_model(), random.Random(0)
    set_all(model, 0)
    tp.save_heads(model, folder)
    left = 0
    for kill in range(KILLS):
        first = 1000 * (kill + 1)
        before = (folder / HEADS).stat().st_mtime_ns
        child = process.start(folder, first)
        wait_for(folder / HEADS, before)
        time.sleep(draw.uniform(0, 0.05))
        process.kill(child)
        tp.load_heads(model, folder)
        assert first <= value_of(model) < first + 1000
        left += files(folder) != [HEADS]
        count("kills in a save loop")
        set_all(model, -first)
        tp.save_heads(model, folder)
        assert files(folder) == [HEADS]
        tp.load_heads(model, folder)
        assert value_of(model) == -first
    print(f"{KILLS} kills, of which {left} left a temporary file until the next save")


def kill_before_the_rename(process: Savers, folder: Path) -> None:
    """Kill a saver that has written its temporary file beside what is in the folder."""
    there = len(files(folder))
    child = process.start(folder, 2, how="die")
    ends = time.monotonic() + 60
    while len(files(folder)) == there and time.monotonic() < ends:
        time.sleep(0.001)
    process.kill(child)
    assert len(files(folder)) == there + 1


def test_a_kill_between_the_write_and_the_rename(process: Savers, tmp_path: Path) -> None:
    """The temporary file is whole and stays; the next save removes it."""
    folder, model = tmp_path / "heads", new_model()
    set_all(model, 1)
    tp.save_heads(model, folder)
    kill_before_the_rename(process, folder)
    assert len(files(folder)) == 2
    tp.load_heads(model, folder)
    assert value_of(model) == 1
    set_all(model, 3)
    tp.save_heads(model, folder)
    assert files(folder) == [HEADS]


def test_the_first_save_to_an_older_folder_is_killed(process: Savers, tmp_path: Path) -> None:
    """The old pair is whole, and the next save ends it."""
    model = new_model()
    set_all(model, 1)
    folder = write_older(tmp_path / "older", *read(tp.save_heads(model, tmp_path / "new")))
    kill_before_the_rename(process, folder)
    assert len(files(folder)) == 3
    assert {CONFIG, HEADS} < set(files(folder))
    tp.load_heads(model, folder)
    assert value_of(model) == 1
    tp.save_heads(model, folder)
    assert files(folder) == [HEADS]


def test_two_savers_beside_a_reader(process: Savers, tmp_path: Path) -> None:
    """No load fails, each is one save of one of them, and neither removes the other's file."""
    folder, model = tmp_path / "heads", new_model()
    set_all(model, 0)
    tp.save_heads(model, folder)
    children = [process.start(folder, first, step=2) for first in (2, 3)]
    seen: set[float] = set()
    ends = time.monotonic() + 60
    loads = 0
    while loads < 20 * KILLS or len({value % 2 for value in seen if value}) < 2:
        assert time.monotonic() < ends + KILLS, f"{loads} loads saw {len(seen)} saves"
        tp.load_heads(model, folder)
        seen.add(value_of(model))
        loads += 1
        count("loads beside two savers")
    for child in children:
        process.kill(child)
    set_all(model, 1)
    tp.save_heads(model, folder)
    assert files(folder) == [HEADS]
