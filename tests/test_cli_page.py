"""docs/cli.md: what it shows is what the commands print."""

from __future__ import annotations

import html
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.digits_vqa.folder import write_questions
from tokenprune.cli import app

from .support.command_line import run_command

ROOT = Path(__file__).parents[1]
WEIGHTS = ROOT / "benchmarks" / "digits_vqa" / "weights"
COMMANDS = [str(command.callback.__name__) for command in app.registered_commands]

PAGE = re.findall(
    r"^```console\n\$ tokenprune (.*?)\n(.*?)^```",
    (ROOT / "docs" / "cli.md").read_text(encoding="utf-8"),
    re.DOTALL | re.MULTILINE,
)


RUNS = ("calibrate", "evaluate", "draw")  # a model, for minutes: shorter here
SHOWN = [(command, output) for command, output in PAGE if not command.startswith(RUNS)]


@pytest.mark.parametrize(("command", "output"), SHOWN, ids=[command for command, _ in SHOWN])
def test_the_page_shows_what_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, output: str
) -> None:
    (tmp_path / "weights").symlink_to(WEIGHTS)
    monkeypatch.chdir(tmp_path)
    _, out, err = run_command(*shlex.split(command))
    assert [line.rstrip() for line in (out + err).splitlines()] == output.splitlines()


def test_the_page_shows_the_form_of_what_runs_print(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In order, on a few questions: the lines are those of the page, but for their figures."""

    def forms(text: str) -> set[str]:
        lines = (
            " ".join(re.sub(r"\d[\d.]*%?|─+", "n", line).split()) for line in text.splitlines()
        )
        return {line for line in lines if line}

    for name in ("mine", "pictures"):
        write_questions(tmp_path / name, 4)
    (tmp_path / "weights").symlink_to(WEIGHTS)
    monkeypatch.chdir(tmp_path)
    for command, output in PAGE:
        if command.startswith(RUNS):
            fewer = [] if command.startswith("draw") else ["--samples", "2"]
            code, out, err = run_command(*shlex.split(command), *fewer)
            assert code == 0, err
            assert forms(out) == forms(output)
    with Image.open("kept.png") as picture:
        assert picture.format == "PNG"


def test_the_picture_shows_the_page() -> None:
    """`python -m scripts.cli_picture` writes it anew when the page has changed."""
    drawn = (ROOT / "docs" / "cli.svg").read_text(encoding="utf-8")
    words = html.unescape(re.sub(r"<[^>]*>", " ", drawn)).split()
    shown = [f"$ tokenprune {command} {output}" for command, output in PAGE]
    shown = [
        text
        for text in shown
        if re.match(r"\$ tokenprune (evaluate|inspect weights/llava .*25%)", text)
    ]
    assert len(shown) == 2
    assert set(" ".join(shown).split()) - {*words} == set()


def test_the_page_has_every_command() -> None:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| \[`(\w+)`\]", text, re.MULTILINE) == COMMANDS
    assert {command.split()[0] for command, _ in PAGE} == {*COMMANDS} - {"train", "report"}
    assert "`tokenprune train " in text
    assert "`tokenprune report " in text
