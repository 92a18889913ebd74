"""Files of heads from anywhere: the saved heads, exactly, or an error and nothing changed.

How many are tried goes by the Hypothesis profile: ``HYPOTHESIS_PROFILE=thorough`` for more.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tokenprune as tp

from .support.heads_files import (
    CONFIG,
    FIRST,
    HEADS,
    edit,
    edit_header,
    edit_text,
    read,
    write,
    write_older,
)
from .support.hostile_heads import (
    loads_exactly_or_not_at_all,
    models,
    outside,
    places,
    refusal,
    replaced,
    reset,
    same,
    saved,
    state,
    try_content,
)


def examples(times: int) -> settings:
    """So many times the profile's number of examples: a file is soon tried."""
    return settings(max_examples=times * settings.default.max_examples)


# -- damage to a valid file ----------------------------------------------------------------------


def test_the_undamaged_file_loads() -> None:
    assert try_content(saved()[0])


header_or_anywhere = st.one_of(st.integers(0, 2000), st.integers(0, len(saved()[0]) - 1))


@examples(4)
@given(st.lists(st.tuples(header_or_anywhere, st.integers(0, 7)), min_size=1, max_size=4))
def test_bits_are_flipped(flips: list[tuple[int, int]]) -> None:
    content = bytearray(saved()[0])
    for place, bit in flips:
        content[place] ^= 1 << bit
    try_content(bytes(content))


@examples(2)
@given(st.integers(0, len(saved()[0]) - 1), st.binary(max_size=40))
def test_the_end_is_cut_off_or_another(length: int, end: bytes) -> None:
    content = saved()[0][:length] + end
    assert try_content(content) == (content == saved()[0])


@examples(2)
@given(st.data())
def test_a_part_is_overwritten(data: st.DataObject) -> None:
    content = saved()[0]
    start = data.draw(header_or_anywhere)
    part = data.draw(
        st.binary(min_size=1, max_size=16) | st.sampled_from((b"null", b"[[[[", b"-1"))
    )
    try_content(content[:start] + part + content[start + len(part) :])


# -- generated JSON ------------------------------------------------------------------------------

numbers = st.integers(-(10**30), 10**30) | st.floats() | st.sampled_from((0, 1, 10**309, 2**63))
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


@examples(4)
@given(st.data())
def test_a_value_of_the_json_is_another(data: st.DataObject) -> None:
    """With the right digest, as whoever writes the file can."""
    _, text, tensors = saved()
    about = json.loads(text)
    path = data.draw(st.sampled_from(places(about)))
    new = data.draw(values)
    changed = json.dumps(replaced(about, path, new))
    with TemporaryDirectory() as name:
        folder = write(Path(name, "heads"), changed, tensors)
        if path[:1] in ((), ("config",), ("runtime",)):
            refused_or_usable(folder)
        else:
            loads_exactly_or_not_at_all(folder)


def refused_or_usable(folder: Path) -> None:
    """Another configuration or budget may be right: a model wrapped with it can be saved again."""
    plain, model = models()
    before, as_it_was = state(model), outside(plain)
    if refusal(tp.load_heads, model, folder) is None:
        reset(model, before)
    assert same(state(model), before)
    if refusal(tp.wrap, plain, folder) is None:
        tp.save_heads(plain, folder)
        tp.unwrap(plain)
    assert outside(plain) == as_it_was


@examples(2)
@given(st.data())
def test_a_value_of_the_header_is_another(data: st.DataObject) -> None:
    content = saved()[0]
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    path = data.draw(st.sampled_from(places(header)))
    raw = json.dumps(replaced(header, path, data.draw(values))).encode()
    try_content(len(raw).to_bytes(8, "little") + raw + content[end:])


@examples(1)
@given(st.text(max_size=200) | values.map(json.dumps))
def test_the_json_is_anything(text: str) -> None:
    with TemporaryDirectory() as name:
        try:
            folder = write(Path(name, "heads"), text, saved()[2])
        except UnicodeEncodeError:  # a lone surrogate: no such file
            return
        assert not loads_exactly_or_not_at_all(folder)


# -- what was found by hand ----------------------------------------------------------------------


def huge(name: str, value: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder, lambda about: about["config"].update({name: value}))


def older(text: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        write_older(folder, *read(folder))
        (folder / CONFIG).write_text(text)

    return change


DEEP = "[" * 100_000 + "]" * 100_000
HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "deep json": (lambda f: edit_text(f, '"llava"', DEEP), "nested too deeply"),
    "deep header": (
        lambda f: deep_header(f),
        "nested too deeply",
    ),
    "deep older json": (older(DEEP), "nested too deeply"),
    "method is a list": (huge("method", []), r"method=\[\] is not known"),
    "method is an object": (huge("method", {"a": 1}), r"method=\{'a': 1\} is not known"),
    "309 digits": (huge("temperature", 10**309), "an integer of 310 digits"),
    "5000 digits": (
        lambda f: edit_text(f, '"temperature": 20.0', '"temperature": ' + "9" * 5000),
        "an integer of 5000 digits",
    ),
    "309 digits of the header": (
        lambda f: edit_header(f, lambda h: h[FIRST].update(shape=[10**309, 1])),
        "an integer of 310 digits",
    ),
    "max_kept": (
        lambda f: edit(f, lambda a: a["runtime"].update(max_kept=10**18)),
        r"max_kept=10+: expected",
    ),
    "special_ids": (huge("special_ids", [10**18]), r"special_ids=.*expected whole numbers"),
    "strides": (huge("strides", [10**18]), r"strides=.*expected whole numbers from 2 to 1024"),
    "grid": (huge("grid", [3000, 3000]), r"grid=\(3000, 3000\): expected two whole numbers"),
    "grid of 64 TB": (huge("grid", [10**6, 10**6]), "grid=.*expected two whole numbers"),
    "grid and hidden": (
        lambda f: edit(f, lambda a: a["config"].update(grid=[1024, 1024], hidden=65536)),
        "grid=.*expected at most 512 cells with hidden=65536",
    ),
    "10,000 layers": (
        huge("layers", list(range(10_000))),
        "config.layers: saved 10000, this model 6",
    ),
    "a header of 2 MiB": (
        lambda f: edit_header(f, lambda h: None, padding=2**21),
        "the limit is 1048576",
    ),
    "an older json of 2 MiB": (older("{}" + " " * 2**21), "longer than 1048576 bytes"),
}


def deep_header(folder: Path) -> None:
    raw = ('{"x":' + DEEP + "}").encode()
    (folder / HEADS).write_bytes(len(raw).to_bytes(8, "little") + raw)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_in_a_sentence(tmp_path: Path, name: str) -> None:
    change, message = HOSTILE[name]
    folder = write(tmp_path / "heads", *saved()[1:])
    change(folder)
    said = refusal(tp.wrap, models()[0], folder)
    assert said is not None
    assert re.search(message, said)
    assert len(said) < 2000
    assert not loads_exactly_or_not_at_all(folder)


# -- memory --------------------------------------------------------------------------------------

BIG = {
    # Within every bound: 2 x 1000 x 1000 cells x 32 x 4 bytes, twice, is 512 MB.
    "grid": (
        lambda f: edit(f, lambda a: a["config"].update(grid=[1000, 1000], hidden=32)),
        r"saved \[8, 72\], expected \[32, 2000000\]",
    ),
    "header of 3 GB": (lambda f: sparse(f / HEADS, 3 * 10**9, start=True), "the limit is"),
    "file of 3 GB": (lambda f: sparse(f / HEADS, 3 * 10**9), "damaged: it has 3000000000 bytes"),
    "older json of 3 GB": (
        lambda f: (write_older(f, *read(f)), sparse(f / CONFIG, 3 * 10**9)),
        "longer than 1048576 bytes",
    ),
}


def sparse(path: Path, size: int, start: bool = False) -> None:
    """Make a file longer, with zeros that take no disk; or one whose header says that it is."""
    with open(path, "r+b") as file:
        if start:
            file.write((size - 8).to_bytes(8, "little"))
        file.truncate(size)


MEASURE = """
import resource, sys
from tests.support.tiny_llava import tiny_llava
from tests.support.saver_process import new_model
import tokenprune as tp

models = [tiny_llava(), new_model()]
tp.load_heads(models[1], sys.argv[1])
for folder in sys.argv[2:]:
    for load, model in zip((tp.wrap, tp.load_heads), models):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            load(model, folder)
        except ValueError as error:
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            print(grown, str(error).replace(chr(10), " "))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss is that of Linux")
def test_no_memory_is_taken_for_what_is_refused(tmp_path: Path) -> None:
    """The peak of a process of its own grows by less than 32 MiB for each."""
    good = write(tmp_path / "good", *saved()[1:])
    folders = []
    for number, (change, _) in enumerate(BIG.values()):
        folders.append(write(tmp_path / str(number), *saved()[1:]))
        change(folders[-1])
    run = [sys.executable, "-c", MEASURE, str(good), *map(str, folders)]
    root = Path(__file__).parents[1]
    found = subprocess.run(run, cwd=root, capture_output=True, text=True, timeout=300, check=True)
    lines = found.stdout.splitlines()
    assert len(lines) == 2 * len(BIG)
    for (name, (_, message)), *both in zip(BIG.items(), lines[::2], lines[1::2], strict=True):
        for line, how in zip(both, ("wrap", "load"), strict=True):
            grown, said = line.split(" ", 1)
            assert int(grown) < 32 * 1024, (name, how, grown)
            if how == "wrap" or name != "grid":  # the loader sees another configuration first
                assert re.search(message, said), (name, said)
