"""Every block of code on the pages: Python runs, commands run or name what there is."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from benchmarks.digits_vqa.dataset import collate, samples
from benchmarks.digits_vqa.recipe import calibration_batches, load

from .support.command_line import parse_command, run_command
from .support.pages import PAGES, ROOT, Block, blocks, name, with_blocks

# Pages whose blocks need more than the small LLaVA, and the tests that run them.
ELSEWHERE = {
    "docs/adding_a_family.md": "test_adding_a_family.py",
    "docs/adding_a_method.md": "test_adding_a_method.py",
}
# Files that a page's Python writes.
LEAVES = {
    "README.md": ["heads/tokenprune_heads.safetensors", "kept.png"],
    "docs/quickstart.md": ["folder/tokenprune_heads.safetensors", "kept.png"],
    "docs/training.md": [
        "heads/tokenprune_heads.safetensors",
        "folder/tokenprune_heads.safetensors",
    ],
}
# What a block may say it is. `text` is a picture in letters, or output: nothing in it can be run.
LANGUAGES = {"python", "console", "sh", "bash", "text"}
TARGETS = set(
    re.findall(r"^([\w-]+):(?!=)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_block_says_what_it_is(page: Path) -> None:
    """Without that no test would know whether to run it."""
    unknown = [(b.line, b.language) for b in blocks(page) if b.language not in LANGUAGES]
    assert not unknown, f"expected ```python, ```sh, ```console or ```text at {unknown}"
    assert 2 * len(blocks(page)) == page.read_text(encoding="utf-8").count("```")


# -- Python --------------------------------------------------------------------------------------


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What blocks call by name without making it, in a folder with the small models."""
    model, processor = load("llava")
    picture = samples("validation", 1, 3)
    inputs = collate(processor, picture, with_answers=False)
    for folder in ("benchmarks", "examples"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    (tmp_path / "weights").symlink_to(ROOT / "benchmarks" / "digits_vqa" / "weights")  # cli.md's
    monkeypatch.chdir(tmp_path)
    return {
        "torch": torch,
        "model": model,
        "processor": processor,
        "tokenizer": processor.tokenizer,
        "batches": [collate(processor, samples("train", 2, 1), with_answers=True)],
        "unlabeled": calibration_batches(processor, samples("train", 12, 2)),
        "inputs": {**inputs, "max_new_tokens": 1},
        "image": Image.fromarray(picture[0].picture.pixels),
    }


PYTHON = [page for page in with_blocks("python") if name(page) not in ELSEWHERE]


@pytest.mark.parametrize("page", PYTHON, ids=name)
def test_python_runs(page: Path, names: dict[str, Any], tmp_path: Path) -> None:
    """In the page's order, in one namespace; and it does what it is for."""
    for block in blocks(page, "python"):
        where = "\n" * block.line  # a traceback then names the page's line
        exec(compile(where + block.text, str(page), "exec", dont_inherit=True), names)
    for path in LEAVES.get(name(page), []):
        assert (tmp_path / path).is_file()


@pytest.mark.parametrize("page", ELSEWHERE)
def test_the_other_pages_are_run_by_tests_of_their_own(page: str) -> None:
    text = (ROOT / "tests" / ELSEWHERE[page]).read_text(encoding="utf-8")
    assert blocks(ROOT / page, "python")
    assert Path(page).name in text
    assert "exec(compile(block" in text


# -- commands ------------------------------------------------------------------------------------


def commands(block: Block) -> list[list[str]]:
    """Return the commands of a block, in words, without comments and without variables."""
    lines = block.text.replace("\\\n", " ").splitlines()
    if block.language == "console":
        lines = [line[2:] for line in lines if line.startswith("$ ")]
    found = []
    for line in lines:
        words: list[str] = []
        for word in [*shlex.split(line, comments=True), "&&"]:
            if word == "&&":
                found += [words] if words else []
                words = []
            elif words or not re.match(r"\w+=", word):
                words.append(word)
    return found


ALL_COMMANDS = {
    f"{name(page)}:{block.line}": commands(block)
    for page in PAGES
    for block in blocks(page, "sh", "bash", "console")
}


def problem(words: list[str]) -> str | None:
    """Say what a command names that is not there."""
    program = Path(words[0]).name
    if program == "tokenprune":
        return None  # run, below
    if program == "make":
        return None if set(words[1:]) <= TARGETS else f"make has no {words[1:]}"
    if program in ("python", "torchrun"):
        module = words[words.index("-m") + 1] if "-m" in words else None
        if module and importlib.util.find_spec(module) is None:
            return f"no module {module}"
        paths = [word.split("::")[0] for word in words if re.match(r"(tests|examples)/", word)]
        return next((f"no file {path}" for path in paths if not (ROOT / path).exists()), None)
    return None if program in ("pip", "cd", "lmms-eval") else f"no rule here for {program}"


@pytest.mark.parametrize("where", ALL_COMMANDS)
def test_commands_name_what_there_is(where: str) -> None:
    """Most take minutes or hours, or install: what runs them is what the pages say they do."""
    assert ALL_COMMANDS[where]
    assert not [found for words in ALL_COMMANDS[where] if (found := problem(words))]


OURS = {
    f"{name(page)}:{block.line}": block
    for page in PAGES
    if page.name != "cli.md"  # run by test_cli.py
    for block in blocks(page, "sh", "bash", "console")
    if re.search(r"^(\$ )?tokenprune ", block.text, re.MULTILINE)
}


@pytest.mark.parametrize("where", OURS)
@pytest.mark.usefixtures("names")
def test_our_own_commands_run(where: str) -> None:
    """And print what a `console` block shows. Of a reader's own MODEL, arguments are read alone."""
    block, printed = OURS[where], ""
    for words in commands(block):
        if words[0] == "tokenprune" and "MODEL" in words:  # such commands run on docs/cli.md
            parse_command(*words[1:])
        elif words[0] == "tokenprune":
            code, out, _ = run_command(*words[1:])
            assert code == 0
            printed += out
    if block.language == "console":
        shown = [line for line in block.text.splitlines() if not line.startswith("$ ")]
        assert [line.rstrip() for line in printed.splitlines()] == shown


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_targets_of_make_in_the_text_exist(page: Path) -> None:
    named = re.findall(r"`make ([a-z][\w-]*)", page.read_text(encoding="utf-8"))
    assert not set(named) - TARGETS
